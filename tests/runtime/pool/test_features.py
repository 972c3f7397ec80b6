"""Each feature's value on hand-made states, its bounds, and the hash of the whole spec.

TTFT 1 s, TBT 0.1 s; prefill 10 ms + 1 ms a token; 100 bytes of weights at 100 B/s: 1 s to switch.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core import DecisionKind, EventKind, Phases
from runtime.pool.features import (
    HIGH,
    INSTANCE_FEATURES,
    LOW,
    POOL_FEATURES,
    ROW_FEATURES,
    SPEC_HASH,
    SPEC_VERSION,
    C,
    F,
    I,
    instance_features,
    pool_features,
    row_features,
    spec_hash,
)

ALL = ROW_FEATURES + INSTANCE_FEATURES + POOL_FEATURES
TURN, PREFETCH = DecisionKind.TURN, DecisionKind.PREFETCH


def row(pool: Any, m: int, g: int = 0) -> dict[str, float]:
    out = np.full(F, np.nan, np.float32)
    row_features(pool.state, g, m, out)
    return dict(zip([f.name for f in ROW_FEATURES], out.tolist(), strict=True))


def instance(pool: Any, kind: int = TURN, g: int = 0) -> dict[str, float]:
    out = np.full(I, np.nan, np.float32)
    instance_features(pool.state, kind, g, out)
    return dict(zip([f.name for f in INSTANCE_FEATURES], out.tolist(), strict=True))


def whole(pool: Any, overflow: int = 0) -> dict[str, float]:
    out = np.full(C, np.nan, np.float32)
    pool_features(pool.state, overflow, out)
    return dict(zip([f.name for f in POOL_FEATURES], out.tolist(), strict=True))


def check(found: dict[str, float], **expected: float) -> None:
    named = {name: found[name] for name in expected}
    assert named == pytest.approx(expected, rel=1e-5, abs=1e-6)


def later(pool: Any, at_s: float) -> None:
    """Time passes: an arrival elsewhere that is cancelled at once."""
    r = pool.arrive(len(pool.state.models) - 1, at_s=at_s)
    pool.apply(EventKind.CANCEL, request=r)
    pool.drain()


def test_row_of_waiting_requests_on_a_cold_instance(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 10))
    pool.arrive(0, 4)
    pool.arrive(0, 8, at_s=0.5)  # due at 1.0 and 1.5 s; weights in place at 1.5 s
    check(
        row(pool, 0),
        slack_min=0.0,
        all_late=0.0,  # 0 s of slack is on time
        slack_mean=-0.25,
        late_share=0.5,
        waiting=0.25,
        ready=0.0,
        oldest_wait=0.5,
        unserved=0.5,
        switch_left=1.0,
        is_loaded=0.0,
        is_prefetched=0.0,
        running_elsewhere=0.0,
        prefetched_elsewhere=0.0,
        kv_need=120 / 1000,
        prefill_time=0.032,
    )


def test_row_when_all_requests_are_late(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 10))
    pool.arrive(0)
    later(pool, 1.25)
    check(row(pool, 0), slack_min=0.0, all_late=1.0, slack_mean=-1.25, late_share=1.0)
    check(row(pool, 0), oldest_wait=1.25, unserved=1.25)


def test_row_of_the_active_model_needs_no_switch(hand_pool: Any) -> None:
    pool = hand_pool()
    r = pool.arrive(0, 4)
    pool.start(0, 0, quota_ns=0)
    pool.prefill(0, seconds=0.1)
    pool.apply(EventKind.TURN_ENDED, instance=0)
    assert pool.ready(0) == [r]
    check(
        row(pool, 0),
        slack_min=1.0,  # its second token is due at 1.1 s
        ready=1 / 8,
        waiting=0.0,
        unserved=0.0,
        switch_left=0.0,
        is_loaded=1.0,
        is_prefetched=0.0,
        prefill_time=0.0,
        kv_need=0.08,
    )


def test_row_of_a_prefetched_model_counts_the_rest_of_its_load(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 10), instances_per_node=2)
    pool.arrive(0)
    pool.arrive(1)
    pool.start(0, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    pool.prefill(0, seconds=0.25)
    check(row(pool, 1), switch_left=0.75, is_prefetched=1.0, prefetched_elsewhere=0.0)
    check(row(pool, 1, g=1), switch_left=1.0, is_prefetched=0.0, prefetched_elsewhere=1.0)
    check(row(pool, 0, g=1), running_elsewhere=1.0)
    check(row(pool, 0), running_elsewhere=0.0)


def test_row_counts_only_what_the_instance_could_take(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2)
    pool.arrive(0)
    pool.serve(0, 0)
    check(row(pool, 0, g=0), ready=1 / 8)
    check(row(pool, 0, g=1), ready=0.0, waiting=0.0, kv_need=0.0, all_late=1.0)


def test_row_rate_decays(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 10))
    pool.arrive(0)
    check(row(pool, 0), rate=1 / 60 / 8)
    later(pool, 60.0)
    check(row(pool, 0), rate=np.exp(-1) / 60 / 8)


def test_instance_before_and_in_a_turn(hand_pool: Any) -> None:
    pool = hand_pool(roles=(Phases.BOTH, Phases.DECODE), instances_per_node=2)
    check(instance(pool), is_turn=1, is_prefetch=0, kv_free=1, has_model=0, batch=0, compute=0)
    check(instance(pool, g=0), can_prefill=1.0, load_left=0.0)
    check(instance(pool, g=1), can_prefill=0.0)
    pool.arrive(0, 4)
    pool.start(0, 0)
    pool.prefill(0, seconds=0.5)
    pool.arrive(1)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    pool.steps(0, 1, 0.25)
    found = instance(pool, PREFETCH)
    check(found, is_turn=0, is_prefetch=1, kv_free=0.92, has_model=1, batch=1 / 8)
    check(found, compute=0.75, load_left=0.75)


def test_pool_counts_load_memory_and_rate(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 10), instances_per_node=2, host_kv_bytes=160)
    check(whole(pool), claimable=0, in_flight=0, busy=0, open_models=0, host_kv=0, prefetching=0)
    pool.arrive(0)
    pool.serve(0, 0)
    pool.arrive(1)
    pool.turn(0, 1)
    pool.arrive(2)
    found = whole(pool, overflow=4)
    check(found, claimable=1 / 16, in_flight=3 / 32, busy=0.5, open_models=0.5, overflow=0.5)
    check(found, host_kv=0.5, prefetching=0.5)
    assert found["rate"] == pytest.approx(3 / 60 / 2, rel=1e-3)  # within 30 ms


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 99), max_size=40),
    at_s=st.floats(0.0, 1e4),
    served=st.booleans(),
    overflow=st.integers(0, 500),
)
def test_features_keep_their_bounds(
    hand_pool: Any, prompts: list[int], at_s: float, served: bool, overflow: int
) -> None:
    pool = hand_pool(weights=(100, 100, 10), capacity=64)
    for prompt in prompts:
        pool.arrive(0, prompt)
    if served and prompts:
        pool.start(0, 0)
        pool.prefill(0, 1, 9.0)
    later(pool, at_s)
    values = [*row(pool, 0).values(), *instance(pool).values(), *whole(pool, overflow).values()]
    found = np.array(values, np.float32)
    assert np.isfinite(found).all()
    for feature, value, low, high in zip(ALL, found, LOW, HIGH, strict=True):
        assert low <= value <= high, feature.name


def test_a_sum_that_rounding_left_below_zero_shows_as_zero(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.state.models["waiting_s"][0] = -1e-17
    assert row(pool, 0)["prefill_time"] == 0.0


def test_features_do_not_change_the_pool(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    before = pool.image()
    row(pool, 0), instance(pool), whole(pool)
    assert pool.image() == before


def hash_of(rows: Any, version: int = SPEC_VERSION) -> str:
    return spec_hash(version, rows, INSTANCE_FEATURES, POOL_FEATURES)


@pytest.mark.parametrize(
    "change", [{"name": "slack"}, {"unit": "ms"}, {"scale": "TBT"}, {"low": -1}, {"high": 5}]
)
def test_spec_hash_changes_with_what_a_number_is(change: dict[str, Any]) -> None:
    assert hash_of(ROW_FEATURES) == SPEC_HASH
    changed = (ROW_FEATURES[0]._replace(**change), *ROW_FEATURES[1:])
    assert hash_of(changed) != SPEC_HASH


def test_spec_hash_changes_with_order_and_version_but_not_with_wording() -> None:
    assert hash_of(ROW_FEATURES[::-1]) != SPEC_HASH
    assert hash_of(ROW_FEATURES, SPEC_VERSION + 1) != SPEC_HASH
    assert hash_of(tuple(f._replace(meaning="x") for f in ROW_FEATURES)) == SPEC_HASH


def test_feature_names_are_unique_and_bounds_ordered() -> None:
    for group in (ROW_FEATURES, INSTANCE_FEATURES, POOL_FEATURES):
        assert len({f.name for f in group}) == len(group)
    assert (LOW < HIGH).all()
    assert len(LOW) == F + I + C == len(ALL)
