"""`learned`: the index until it is trained, plain arithmetic in kernels, files checked whole."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies import heuristics, learned
from aegaeon_rl.policies.index import NAMES, Index
from aegaeon_rl.policies.learned import (
    IDLE_PENALTY,
    LEVEL_PENALTY,
    Learned,
    Weights,
    initial_weights,
    load_weights,
    save_weights,
    weights_by_feature,
)
from runtime.core import DecisionKind, EventKind, PoolSpec, PrefetchMode, SloSpec
from runtime.emulator.run import run
from runtime.errors import UserError
from runtime.pool.candidates import ROWS, can_idle, fill_rows
from runtime.pool.features import C, F, I, instance_features, pool_features, row_features
from traces import Trace
from traces.market import MarketSpec, generate

QUOTAS_S = (0.1, 0.4)
INDICES = {make.__name__: make for make in (heuristics.index, heuristics.fcfs, heuristics.collate)}


def untrained(index: Index, hidden: int = 8, seed: int = 0) -> Learned:
    quotas_s = (index.quota_s, 4 * index.quota_s)
    return Learned(name="learned", weights=initial_weights(index, quotas_s, hidden, seed))


def trained(seed: int, spread: float = 1.0) -> Learned:
    """All weights drawn at random, as training might leave them."""
    rng = np.random.default_rng(seed)
    start = initial_weights(heuristics.index(), QUOTAS_S, 8, seed)
    drawn = {
        name: rng.normal(0.0, spread, getattr(start, name).shape).astype(np.float32)
        for name in ("b1", "b2", "w3", "b3", "idle")
    }
    return Learned(name="learned", weights=start._replace(**drawn))


def plain_scores(weights: Weights, inputs: Any, is_prefetch: bool) -> tuple[float, Any]:
    """The index's score of a row and the network's [Q], in float64."""
    w = Weights(*(array.astype(np.float64) for array in weights))
    first = np.maximum(w.w1 @ inputs + w.b1, 0.0)
    second = np.maximum(w.w2 @ first + w.b2, 0.0)
    index = float(w.base[int(is_prefetch)] @ inputs[:F])
    return index, (w.w3 @ second + w.b3)[: 1 if is_prefetch else None]


@pytest.fixture(scope="module")
def crowd() -> Trace:
    """Ninety models in a burst: more than there are rows."""
    spec = MarketSpec(name="crowd", models=90, duration_s=15.0, rate_rps=25.0, zipf=0.2, seed=2)
    return generate(spec)


@pytest.fixture
def pools(flat_pool: Callable[..., PoolSpec]) -> dict[str, PoolSpec]:
    sizes = ("Qwen2.5-7B", "Llama-2-13B")
    h100 = PoolSpec(name="h100x2", profile="h100", checkpoints=sizes, instances_per_node=2)
    return {
        "one": flat_pool(1),
        "three": flat_pool(3),
        "two nodes": flat_pool(2, nodes=2),
        "one slot": flat_pool(2, weight_slots=1),
        "no prefetch": flat_pool(2, prefetch=PrefetchMode.NONE),
        "h100": h100,
        "little memory": replace(h100, vram_bytes=56_000_000_000, host_kv_bytes=10**9),
    }


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize(
    "pool", ["one", "three", "two nodes", "one slot", "no prefetch", "h100", "little memory"]
)
def test_untrained_network_leaves_the_journal_of_its_index(
    crowd: Trace, burst: Trace, pools: Any, pool: str, name: str
) -> None:
    index = replace(INDICES[name](), longest_s=0.0)
    for trace in (burst, crowd):
        journals = [
            run(trace, pools[pool], policy, SloSpec(), horizon_s=30.0, journal=True).journal
            for policy in (index, untrained(index))
        ]
        assert len(journals[0]) > 200
        assert journals[0].tobytes() == journals[1].tobytes()


def test_trained_network_leaves_another_journal(burst: Trace, flat_pool: Any) -> None:
    index = heuristics.index()
    journals = [
        run(burst, flat_pool(2), policy, SloSpec(), journal=True).journal.tobytes()
        for policy in (index, trained(0))
    ]
    assert journals[0] != journals[1]


def test_decisions_are_those_of_plain_arithmetic(burst: Trace, flat_pool: Any, spy: Any) -> None:
    """Every score of the kernel, and the best answer, against NumPy in float64."""
    given = {"row": 0, "level": 0, "idle": 0, "none": 0}
    rows = np.zeros(ROWS, np.int64)
    features, instance, pool = (np.zeros(n, np.float32) for n in (F, I, C))

    def look(state: Any, kind: int, g: int, event: Any, memory: Any) -> None:
        idle_weights = policy.weights.idle.astype(np.float64)
        is_prefetch = kind == DecisionKind.PREFETCH
        count, overflow = fill_rows(state, kind, g, rows)
        instance_features(state, kind, g, instance)
        pool_features(state, overflow, pool)
        options, best_index, last = {}, -np.inf, np.zeros(0)
        for m in rows[:count]:
            row_features(state, g, m, features)
            inputs = np.concatenate([features, instance, pool]).astype(np.float64)
            index, last = plain_scores(policy.weights, inputs, is_prefetch)
            best_index = max(best_index, index)
            for q, score in enumerate(last):
                options[int(m), q] = index - LEVEL_PENALTY * q + score
        if count:
            np.testing.assert_allclose(memory.scores[: len(last)], last, rtol=1e-4, atol=1e-4)
        context = np.concatenate([instance, pool, [1.0]])
        if is_prefetch or can_idle(state, g):
            options[-1, 0] = best_index - IDLE_PENALTY + float(idle_weights @ context)
        if is_prefetch or event["kind"] != EventKind.TURN:
            chosen = int(event["model"]) if is_prefetch else -1, 0
        else:
            quotas = [round(s * 1e9) for s in QUOTAS_S]
            chosen = int(event["model"]), quotas.index(int(event["quota_ns"]))
        if count:
            assert options[chosen] >= max(options.values()) - 1e-4
        given["row"] += chosen[0] >= 0
        given["level"] += chosen[1]
        given["idle"] += not is_prefetch and chosen[0] < 0
        given["none"] += is_prefetch and chosen[0] < 0

    for seed in range(6):
        policy = trained(seed, spread=0.6)
        run(burst, flat_pool(2), spy(policy, look), SloSpec(), horizon_s=60.0)
    assert min(given.values()) > 20, given


def biased(**changes: Any) -> Learned:
    start = initial_weights(heuristics.index(), QUOTAS_S, 8, 0)
    values = {name: np.array(value, np.float32) for name, value in changes.items()}
    return Learned(name="learned", weights=start._replace(**values))


def answers(policy: Learned, trace: Trace, pool: PoolSpec) -> Any:
    return run(trace, pool, policy, SloSpec(), horizon_s=60.0, journal=True).journal


@pytest.mark.parametrize(("gain", "quota_ns"), [(0.15, 100_000_000), (0.25, 400_000_000)])
def test_longer_quota_must_gain_more_than_it_costs(
    burst: Trace, flat_pool: Any, gain: float, quota_ns: int
) -> None:
    journal = answers(biased(b3=[0.0, gain]), burst, flat_pool(2))
    assert set(journal[journal["kind"] == EventKind.TURN]["quota_ns"]) == {quota_ns}


def test_idle_waits_only_where_waiting_is_allowed(burst: Trace, flat_pool: Any) -> None:
    """A network that always prefers to wait still serves all, and prefetches nothing."""
    idle = np.zeros(I + C + 1)
    idle[-1] = IDLE_PENALTY + 1.0
    finished = run(burst, flat_pool(2), biased(idle=idle), SloSpec())
    assert (finished.results["emitted_tokens"] == finished.results["due_tokens"]).all()
    journal = answers(biased(idle=idle), burst, flat_pool(2))
    prefetches = journal[journal["kind"] == EventKind.PREFETCH]
    assert len(prefetches) > 5
    assert set(prefetches["model"]) == {-1}
    assert (journal["kind"] == EventKind.IDLE).sum() > 5
    eager = answers(biased(), burst, flat_pool(2))
    assert (eager[eager["kind"] == EventKind.PREFETCH]["model"] >= 0).any()


def test_initial_weights_hold_the_index_by_name() -> None:
    index = heuristics.index()
    named = weights_by_feature(initial_weights(index, QUOTAS_S, 4, 0))
    assert set(named) == set(NAMES)
    for name, (turn, prefetch) in named.items():
        assert turn == pytest.approx(index.turn.get(name, 0.0), rel=1e-6)
        assert prefetch == pytest.approx(index.prefetch.get(name, 0.0), rel=1e-6)
    pair = [initial_weights(index, QUOTAS_S, 4, seed) for seed in (0, 1)]
    assert not np.array_equal(pair[0].w1, pair[1].w1)
    assert not pair[0].w3.any()


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    weights = trained(1).weights
    save_weights(weights, tmp_path / "weights.npz")
    for array, again in zip(weights, load_weights(tmp_path / "weights.npz"), strict=True):
        assert np.array_equal(array, again)
        assert again.dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == ["weights.npz"]
    policy = Learned.load(tmp_path / "weights.npz", name="x")
    assert policy.name == "x"


def test_a_failed_save_leaves_the_weights_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.npz"
    save_weights(trained(1).weights, path)
    before = path.read_bytes()

    def fail(file: Path, **_: Any) -> None:
        file.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(learned.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(trained(2).weights, path)
    assert path.read_bytes() == before


def written(path: Path, **changes: Any) -> None:
    arrays = trained(1).weights._asdict() | {"spec_hash": np.array(learned.SPEC)}
    arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez(path, **arrays)


class Bomb:
    """Fails the test when a pickle of it is loaded."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def bad_file(path: Path, kind: str) -> None:
    written(path)
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "damaged":
        path.write_bytes(data[:200] + bytes(60) + data[260:])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no weights\n")
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        path.unlink()


@pytest.mark.parametrize(
    "kind", ["truncated", "damaged", "empty", "text", "array", "pickle", "absent"]
)
def test_a_file_that_is_no_weights_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.npz"
    bad_file(path, kind)
    with pytest.raises(UserError) as caught:
        load_weights(path)
    assert str(caught.value).startswith(f"{path}: not policy weights: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec_hash": np.array("0123")}, "trained on feature spec 0123: expected 1-"),
        ({"spec_hash": None}, "not policy weights: "),
        ({"b3": None}, "not policy weights: "),
        ({"b1": np.array([Bomb()], object)}, "not policy weights: Object arrays cannot be loaded"),
        ({"w1": np.array(["a"])}, "not policy weights: could not convert"),
        ({"w1": np.zeros((8, F))}, rf"w1 has shape \(8, {F}\): expected \(8, {F + I + C}\)"),
        ({"b1": np.zeros((8, 1))}, r"b1 has shape \(8, 1\): expected \(8,\)"),
        ({"w3": np.zeros((3, 8))}, r"w3 has shape \(3, 8\): expected \(2, 8\)"),
        ({"quotas_s": np.full((2, 1), 0.1)}, r"quotas_s has shape \(2, 1\): expected \(2,\)"),
        ({"quotas_s": np.array([0.1, 0.0])}, r"quotas_s=\[0.1 0. \]: expected 1e-06 s or more"),
        ({"quotas_s": np.array([0.1, np.nan])}, "quotas_s has values that are not finite"),
        ({"b1": np.full(8, np.nan)}, "b1 has values that are not finite"),
        ({"base": np.full((2, F), np.inf)}, "base has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "weights.npz"
    written(path, **changes)
    with pytest.raises(UserError, match=message):
        load_weights(path)


def test_no_quota_level_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    written(path, quotas_s=np.zeros(0), b3=np.zeros(0), w3=np.zeros((0, 8)))
    with pytest.raises(UserError, match=r"quotas_s=\[\]"):
        load_weights(path)
