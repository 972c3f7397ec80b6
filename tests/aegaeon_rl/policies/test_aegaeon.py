"""`aegaeon`: groups of eight, batches per model, quotas of equal playback time."""

from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.aegaeon import Aegaeon, split_roles
from runtime.core import DecisionKind, Dispatch, EventKind, Phases, PoolSpec, PrefetchMode, SloSpec
from runtime.emulator.run import run
from runtime.errors import UserError

P, D = Phases.PREFILL, Phases.DECODE
SLO = SloSpec()


def routes(result: Any) -> list[tuple[int, int, int]]:
    """(request, instance, tag) of each ROUTE, in order."""
    rows = result.journal[result.journal["kind"] == EventKind.ROUTE]
    return [(int(r["id"]), int(r["instance"]), int(r["tag"])) for r in rows]


@pytest.mark.parametrize("artifact", [False, True])
def test_round_gives_every_batch_the_quota_of_the_formula(
    burst: Any, flat_pool: Any, spy: Any, artifact: bool
) -> None:
    """q_i = c / (n_i (a - S)), a = max(c / (min n QMAX) + S, 0.5), n_i = d / t_i."""
    rounds: list[int] = []
    left: dict[int, int] = {}  # quotas by tag, as of the last decision

    def look(state: Any, kind: int, g: int, event: Any, memory: Any) -> None:
        if kind != DecisionKind.TURN or event["phases"] != D:
            return
        live = memory.groups.groups[: memory.groups.counters[0]]
        mine = live[live["instance"] == g]
        is_new_round = left.get(int(event["tag"]), 0) == 0
        left.clear()
        left.update(zip(mine["tag"].tolist(), mine["quota_ns"].tolist(), strict=True))
        if is_new_round:
            quota = np.where(mine["tag"] == event["tag"], event["quota_ns"], mine["quota_ns"])
            t = 0.01 + 1e-6 * mine["context_tokens"] + 1e-4 * mine["size"]
            n, c = 0.1 / t, 1.0 * len(set(mine["model"]))
            a = max(c / (n.min() * 4.0) + (1 / n).sum(), 0.5)
            expected = c / (n * (a - (1 / n).sum())) + (0 if artifact else t)
            np.testing.assert_allclose(quota / 1e9, expected, rtol=1e-9, atol=2e-9)
            rounds.append(len(mine))

    pool = flat_pool(3, roles=(P, P, D), sosp25_rules=artifact)
    result = run(burst, pool, spy(Aegaeon(), look), SLO)
    assert result.refused == 0
    assert max(rounds) >= 3


def test_round_serves_each_batch_once_in_order_of_creation(
    burst: Any, flat_pool: Any, spy: Any
) -> None:
    served: list[int] = []

    def look(state: Any, kind: int, g: int, event: Any, memory: Any) -> None:
        if kind == DecisionKind.TURN and event["phases"] == D:
            live = memory.groups.groups[: memory.groups.counters[0]]
            waiting = live["tag"][(live["instance"] == g) & (live["quota_ns"] > 0)]
            assert (waiting > event["tag"]).all()  # tags grow: older batches have had their turn
            served.append(int(event["tag"]))

    run(burst, flat_pool(2, roles=(P, D)), spy(Aegaeon(), look), SLO)
    assert len(set(served)) >= 6


def test_round_of_the_artifact_goes_in_order_of_models(
    burst: Any, flat_pool: Any, spy: Any
) -> None:
    left: list[int] = []

    def look(state: Any, kind: int, g: int, event: Any, memory: Any) -> None:
        if kind == DecisionKind.TURN and event["phases"] == D:
            live = memory.groups.groups[: memory.groups.counters[0]]
            waiting = live[(live["instance"] == g) & (live["quota_ns"] > 0) & (live["size"] > 0)]
            assert (waiting["model"] > event["model"]).all()
            left.append(len(waiting))

    run(burst, flat_pool(2, roles=(P, D), sosp25_rules=True), spy(Aegaeon(), look), SLO)
    assert max(left) >= 3


def test_batch_that_ran_empty_counts_until_its_round_ends_in_the_artifact(
    trace_of: Any, flat_pool: Any, spy: Any
) -> None:
    """Model 0 ends with its first steps; model 1, then served, still has company in the books."""
    books: list[list[int]] = []

    def look(state: Any, kind: int, g: int, event: Any, memory: Any) -> None:
        live = memory.groups.groups[: memory.groups.counters[0]]
        if kind == DecisionKind.TURN and event["phases"] == D:
            books.append(live["model"][live["instance"] == 1].tolist())

    trace = trace_of((0.0, 0, 10, 40), (0.0, 1, 10, 200))
    run(trace, flat_pool(2, roles=(P, D), sosp25_rules=True), spy(Aegaeon(), look), SLO)
    assert [0, 1] in books  # model 1's turn while model 0 has nothing left
    assert books[-1] == [1]


def test_kv_of_the_artifact_moves_in_at_a_turns_start_only(trace_of: Any, flat_pool: Any) -> None:
    trace = trace_of((0.0, 0, 1000, 300), (2.5, 0, 1000, 300))
    pool = flat_pool(2, roles=(P, D), sosp25_rules=True, kv_move_token_bytes=1_000_000)
    journal = run(trace, pool, Aegaeon(), SLO, journal=True).journal
    kinds = (EventKind.SWITCHED, EventKind.STEPS, EventKind.KV_IN_DONE)
    rows = journal[(journal["instance"] == 1) & np.isin(journal["kind"], kinds)]
    moves = np.flatnonzero(rows["kind"] == EventKind.KV_IN_DONE)
    took_ns = rows["time_ns"][moves] - rows["time_ns"][moves - 1]
    is_start = rows["kind"][moves - 1] == EventKind.SWITCHED
    assert (took_ns[is_start] > 70_000_000).all()  # 1,000 MB and more at 14 GB/s
    assert took_ns[~is_start].tolist() == [0]  # the second request joined a turn


def test_prefill_groups_hold_eight_and_open_on_the_least_loaded(
    trace_of: Any, flat_pool: Any
) -> None:
    trace = trace_of(*[(0.0, 0, 10, 1)] * 20, (0.0, 1, 10, 1))
    result = run(trace, flat_pool(3, roles=(P, P, D)), Aegaeon(), SLO, journal=True)
    placed = [(g, tag) for _, g, tag in routes(result)]
    assert placed[:20] == [(0, 1)] * 8 + [(1, 2)] * 8 + [(0, 3)] * 4
    assert placed[20] == (1, 4)  # eight requests against twelve


def test_prefill_groups_of_the_artifact_are_bounded_by_kv_only(
    trace_of: Any, flat_pool: Any
) -> None:
    trace = trace_of(*[(0.0, 0, 1000, 1)] * 20)
    pool = flat_pool(3, roles=(P, P, D), sosp25_rules=True, vram_bytes=19_400_000_000)
    placed = [(g, tag) for _, g, tag in routes(run(trace, pool, Aegaeon(), SLO, journal=True))]
    assert placed == [(0, 1)] * 12 + [(1, 2)] * 8  # 4.86 GB hold twelve of 401 MB


@pytest.mark.parametrize(
    ("artifact", "placed"), [(False, [(0, 1), (0, 1), (1, 2)]), (True, [(0, 1), (0, 2), (0, 3)])]
)
def test_request_under_way_has_left_its_group_in_the_artifact(
    trace_of: Any, flat_pool: Any, artifact: bool, placed: list[tuple[int, int]]
) -> None:
    """The first loads for a second: there its instance counts as empty, and its group is gone."""
    trace = trace_of((0.0, 0, 10, 1), (0.5, 0, 10, 1), (2.0, 1, 10, 1))
    if not artifact:
        trace = trace_of((0.0, 0, 10, 1), (0.5, 0, 10, 1), (0.6, 1, 10, 1))
    pool = flat_pool(3, roles=(P, P, D), sosp25_rules=artifact)
    result = run(trace, pool, Aegaeon(), SLO, journal=True)
    assert [(g, tag) for _, g, tag in routes(result)] == placed


def test_prefill_serves_groups_in_order_and_prefetches_the_next(
    trace_of: Any, flat_pool: Any
) -> None:
    trace = trace_of((0.0, 2, 10, 1), (0.0, 0, 10, 1), (0.0, 2, 10, 1), (0.0, 1, 10, 1))
    journal = run(trace, flat_pool(2), Aegaeon(), SLO, journal=True).journal
    turns = journal[journal["kind"] == EventKind.TURN]
    assert turns["model"].tolist() == [2, 0, 1]
    ahead = journal[(journal["kind"] == EventKind.PREFETCH) & (journal["model"] >= 0)]
    assert ahead["model"].tolist() == [0, 1]


def decode_places(result: Any, requests: int) -> dict[int, tuple[int, int]]:
    """Where each request was sent after its prefill, as (instance, tag)."""
    seen, placed = set(), {}
    for request, g, tag in routes(result):
        if request in seen:
            placed[request] = (g, tag)
        seen.add(request)
    assert len(placed) == requests
    return placed


def test_decode_joins_the_batch_of_its_model_else_the_fewest_batches(
    trace_of: Any, flat_pool: Any
) -> None:
    models = [0, 0, 1, 2, 1, 3]
    trace = trace_of(*[(0.0, m, 10, 400) for m in models])
    result = run(trace, flat_pool(3, roles=(P, D, D)), Aegaeon(), SLO, journal=True)
    placed = decode_places(result, 6)
    assert [placed[r][0] for r in range(6)] == [1, 1, 2, 1, 2, 2]
    assert placed[0] == placed[1]
    assert placed[2] == placed[4]
    assert len({tag for _, tag in placed.values()}) == 4


def test_decode_opens_another_batch_when_one_is_full(trace_of: Any, flat_pool: Any) -> None:
    trace = trace_of(*[(0.0, 0, 1000, 300)] * 4)
    pool = flat_pool(3, roles=(P, D, D), vram_bytes=15_200_000_000)  # 1.08 GB: two requests
    result = run(trace, pool, Aegaeon(), SLO, journal=True)
    placed = decode_places(result, 4)
    assert placed[0] == placed[1]
    assert placed[2] == placed[3]
    assert (placed[0][0], placed[2][0]) == (1, 2)


@pytest.mark.parametrize(
    ("nodes", "per_node", "prefills"),
    [
        (2, 8, [3, 3]),
        (1, 16, [6]),
        (1, 2, [1]),
        (1, 3, [1]),
        (2, 1, [1, 0]),
        (5, 1, [1, 1, 0, 0, 0]),
    ],
)
def test_roles_split_six_of_sixteen_over_the_nodes(
    nodes: int, per_node: int, prefills: list[int]
) -> None:
    pool = PoolSpec(
        name="p",
        profile="h100",
        checkpoints=("Qwen3-8B",),
        nodes=nodes,
        instances_per_node=per_node,
    )
    roles = split_roles(pool)
    assert len(roles) == pool.instances
    assert [roles[i * per_node : (i + 1) * per_node].count(P) for i in range(nodes)] == prefills
    assert set(roles) == {P, D}


@pytest.mark.parametrize(
    ("instances", "roles", "named"),
    [
        (1, (), "has 1 instance, expected 2 or more"),
        (2, (P, P), "pool.roles is PREFILL, PREFILL"),
        (2, (D, D), "pool.roles is DECODE, DECODE"),
        (2, (P, Phases.BOTH), "pool.roles is PREFILL, BOTH"),
    ],
)
def test_pool_that_cannot_be_split_is_the_users_mistake(
    flat_pool: Any, instances: int, roles: tuple[Phases, ...], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        Aegaeon().configure(flat_pool(instances, roles=roles))


@pytest.mark.parametrize("artifact", [False, True])
def test_configure_sets_push_and_the_rules_of_the_artifact(flat_pool: Any, artifact: bool) -> None:
    pool = Aegaeon().configure(flat_pool(3, roles=(P, D, P), sosp25_rules=artifact))
    assert pool.roles == (P, D, P)
    assert pool.dispatch is Dispatch.PUSH
    assert pool.kv_reload_every_turn is artifact
    expected = PrefetchMode.RETROACTIVE if artifact else PrefetchMode.CAUSAL
    assert pool.prefetch is expected
    assert pool.weight_slots == (1 if artifact else 2)
