"""The vocabulary: what a PoolSpec refuses, and the orders other code relies on."""

from typing import Any

import pytest

from runtime.core import EventKind, KvPlace, ModelSlo, Phases, PoolSpec, SloSpec, Stage
from runtime.errors import UserError

GOOD: dict[str, Any] = {"name": "p", "profile": "none", "checkpoints": ("c",)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 0}, "pool.nodes=0: expected at least 1"),
        ({"instances_per_node": 0}, "pool.instances_per_node=0: expected at least 1"),
        ({"weight_slots": 0}, "pool.weight_slots=0: expected at least 1"),
        ({"block_tokens": -1}, "pool.block_tokens=-1: expected at least 1"),
        ({"nodes": 4097}, "pool.nodes=4097: expected at most 4096"),
        (
            {"nodes": 4096, "instances_per_node": 4096},
            "pool.nodes=4096, instances_per_node=4096: expected at most 4096 instances in all",
        ),
        ({"h2d_bytes_s": 0.0}, "pool.h2d_bytes_s=0.0: expected at least 1"),
        ({"d2h_bytes_s": -1.0}, "pool.d2h_bytes_s=-1.0: expected at least 1"),
        ({"disk_bytes_s": float("nan")}, "pool.disk_bytes_s=nan: expected at least 1"),
        ({"host_kv_bytes": -1}, "pool.host_kv_bytes=-1: expected at least 0"),
        ({"command_s": 1e6}, "pool.command_s=1000000.0: expected at most 60"),
        ({"lookahead_tokens": -1}, "pool.lookahead_tokens=-1: expected at least 0"),
        ({"roles": (Phases.BOTH,)}, "pool.roles has 1 entries: expected 8, one each"),
        ({"checkpoints": ()}, "pool.checkpoints is empty: expected at least one checkpoint name"),
        ({"kv_fraction": 0.0}, "pool.kv_fraction=0.0: expected 0 < fraction <= 1"),
        ({"kv_fraction": 1.01}, "pool.kv_fraction=1.01: expected 0 < fraction <= 1"),
    ],
)
def test_pool_spec_names_key_value_and_expectation(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        PoolSpec(**(GOOD | changes))
    assert str(caught.value) == message


def test_a_models_own_slo_replaces_only_what_it_states() -> None:
    slo = SloSpec(ttft_s=5.0, tbt_s=0.2, models={"a": ModelSlo(tbt_s=0.05)})
    assert slo.of("a") == SloSpec(ttft_s=5.0, tbt_s=0.05)
    assert slo.of("b") == SloSpec(ttft_s=5.0, tbt_s=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttft_s": 0.0}, "slo.ttft_s=0.0: expected at least 1e-09 seconds"),
        ({"tbt_s": 1e-12}, "slo.tbt_s=1e-12: expected at least 1e-09 seconds"),
        ({"ttft_s": 1e300}, "slo.ttft_s=1e+300: expected less than 4.61e+09 seconds"),
        ({"tbt_s": float("nan")}, "slo.tbt_s=nan: expected at least 1e-09 seconds"),
        (
            {"models": {"a": ModelSlo(), "b": ModelSlo(tbt_s=-1.0)}},
            "slo.models.b.tbt_s=-1.0: expected at least 1e-09 seconds",
        ),
    ],
)
def test_slo_names_key_value_and_expectation(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        SloSpec(**changes)
    assert str(caught.value) == message


def test_an_slo_of_a_model_not_served_names_the_nearest() -> None:
    slo = SloSpec(models={"chat": ModelSlo(), "caht": ModelSlo()})
    with pytest.raises(UserError) as caught:
        slo.check_models(("chat", "code"))
    expected = "slo.models.caht: no such model; did you mean 'chat'? known: chat, code"
    assert str(caught.value) == expected


def test_pool_spec_counts_the_instances_of_all_nodes() -> None:
    spec = PoolSpec(**GOOD, nodes=3, instances_per_node=2, roles=(Phases.PREFILL,) * 6)
    assert spec.instances == 6


def test_phases_are_bits_of_both() -> None:
    assert Phases.PREFILL | Phases.DECODE == Phases.BOTH
    assert Phases.PREFILL & Phases.DECODE == 0


def test_event_kinds_order_boundaries_before_arrivals_before_answers() -> None:
    assert EventKind.KV_OUT_DONE < EventKind.STEPS < EventKind.ARRIVAL < EventKind.TURN


def test_enums_start_at_the_value_of_a_zeroed_table() -> None:
    assert (KvPlace.NOWHERE, Stage.DOWN) == (0, 0)
    assert sorted(Stage) == list(Stage)  # a turn walks the stages upwards
