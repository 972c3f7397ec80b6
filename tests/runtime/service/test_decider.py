"""Whatever a policy does in its process, the pool gets a possible answer within the budget."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from aegaeon_rl.policies.registry import make_policy
from runtime.core import DecisionKind, EventKind, PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state
from runtime.errors import UserError
from runtime.pool.candidates import next_decision, pose
from runtime.pool.placement import preload
from runtime.pool.state import EVENT, State, grow_requests
from runtime.pool.transitions import Outcome, apply
from runtime.service import decider as module
from runtime.service.decider import Decider, Source
from runtime.service.sources import make, opening
from runtime.service.spec import PolicySource

FACTORY = "policy_fakes:make"
SPEC = PoolSpec(
    name="two",
    profile="h100",
    checkpoints=("Qwen2.5-7B",),
    instances_per_node=2,
)
Started = Callable[..., tuple[Decider, State]]


def pool_of(spec: PoolSpec, capacity: int = 16) -> State:
    names = ("a", "b", "c")
    return build_state(spec, names, SloSpec(), load_profile(SPEC.profile), capacity=capacity)


def arrive(state: State, number: int, model: int = 0) -> None:
    event = np.zeros(1, EVENT)
    event["kind"], event["id"], event["model"], event["n"] = EventKind.ARRIVAL, number, model, 100
    event["time_ns"] = state.pool["now_ns"][0] + 1000
    assert apply(state, event[0]) == Outcome.OK


def answer(decider: Decider, state: State) -> tuple[Source, np.ndarray]:
    """The answer to what is due, which the core must take."""
    kind, index = next_decision(state)
    assert kind == DecisionKind.TURN
    event = np.zeros(1, EVENT)
    pose(state, kind, index, event[0])
    source = decider.decide(state, kind, index, event[0])
    assert apply(state.copy(), event[0]) == Outcome.OK
    assert event["is_fallback"][0] == (source is not Source.POLICY)
    return source, event


@pytest.fixture
def started() -> Iterator[Started]:
    running: list[Decider] = []

    def start(name: str = "index", wait_s: float = 60.0, **fields: float) -> tuple[Decider, State]:
        source = PolicySource(name=name, factory=FACTORY, **{"budget_s": 5.0, **fields})
        policy = make(source.factory, name)
        spec = policy.configure(SPEC)
        state = pool_of(spec)
        preload(state, opening(policy, state))
        decider = Decider(source, policy, spec, state)
        running.append(decider)
        decider.start(wait_s)
        return decider, state

    yield start
    for decider in running:
        decider.close()


def until(is_so: Callable[[], object], decider: Decider, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end
        decider.tick()
        time.sleep(0.02)


def test_policy_answers_from_its_process_as_it_would_here(started: Started) -> None:
    decider, state = started()
    for number, model in enumerate((2, 1, 1)):
        arrive(state, number, model)
    source, event = answer(decider, state)
    expected, policy = np.zeros(1, EVENT), make_policy("index")
    pose(state, DecisionKind.TURN.value, 0, expected[0])
    policy.decide(state, DecisionKind.TURN.value, 0, expected[0], policy.memory(state))
    assert source is Source.POLICY
    assert event == expected


def test_policy_reads_a_table_that_has_grown(started: Started) -> None:
    decider, state = started()
    arrive(state, 0)
    assert answer(decider, state)[0] is Source.POLICY
    for _ in range(4):
        grow_requests(state)
    for number in range(1, 200):
        arrive(state, number, number % 3)
    assert answer(decider, state)[0] is Source.POLICY


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("raises", Source.RAISED),
        ("nan", Source.IMPOSSIBLE),
        ("nan_quota", Source.RAISED),
        ("masked", Source.IMPOSSIBLE),
        ("nowhere", Source.IMPOSSIBLE),
        ("other", Source.IMPOSSIBLE),
        ("idles", Source.IMPOSSIBLE),
        ("dies", Source.DIED),
    ],
)
def test_fault_of_a_policy_gives_the_fallbacks_answer(
    started: Started, name: str, source: Source
) -> None:
    decider, state = started(name)
    arrive(state, 0)
    given, event = answer(decider, state)
    assert given is source
    assert (event["kind"], event["model"]) == (EventKind.TURN, 0)
    assert decider.answers[source] == 1


@pytest.mark.parametrize("name", ["stalls", "holds_gil"])
def test_silent_policy_costs_its_budget_once_and_is_replaced(
    started: Started, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.2)
    decider, state = started(name, budget_s=0.002)
    assert decider.process is not None
    first = decider.process.child
    arrive(state, 0)
    assert answer(decider, state)[0] is Source.LATE
    assert answer(decider, state)[0] is Source.BUSY
    until(lambda: decider.restarts, decider)
    assert first.returncode == -signal.SIGKILL
    assert answer(decider, state)[0] is Source.DOWN
    until(lambda: decider.process, decider)
    assert answer(decider, state)[0] is Source.LATE


def test_late_answer_is_dropped_and_the_next_question_is_asked(started: Started) -> None:
    decider, state = started("dawdles", budget_s=0.002)
    arrive(state, 0)
    assert answer(decider, state)[0] is Source.LATE
    time.sleep(0.3)
    assert answer(decider, state)[0] is Source.LATE
    assert decider.answers[Source.BUSY] == decider.restarts == 0


def test_restarts_wait_longer_each_time(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACK_OFF_S", (0.01, 100.0))
    decider, state = started("dies")
    arrive(state, 0)
    waits = []
    for _ in range(2):
        until(lambda: decider.process, decider)
        assert answer(decider, state)[0] is Source.DIED
        waits.append(decider.restart_s - decider.fault_s)
    assert waits == pytest.approx([0.01, 0.02])


def test_killed_policy_comes_back(started: Started) -> None:
    decider, state = started()
    assert decider.process is not None
    os.kill(decider.process.child.pid, signal.SIGKILL)
    arrive(state, 0)
    decider.process.child.wait()
    assert answer(decider, state)[0] is Source.DIED
    until(lambda: decider.process, decider)
    assert answer(decider, state)[0] is Source.POLICY


def test_closing_leaves_no_process_and_no_file(started: Started) -> None:
    before = set(os.listdir("/proc/self/fd"))
    decider, _ = started()
    assert decider.process is not None
    pid = decider.process.child.pid
    decider.close()
    assert not Path(f"/proc/{pid}").exists()
    assert set(os.listdir("/proc/self/fd")) == before


def test_policy_is_changed_while_the_old_one_answers(started: Started) -> None:
    decider, state = started()
    arrive(state, 0)
    decider.change("fcfs")
    assert decider.status()["next"] == "fcfs"
    assert answer(decider, state)[0] is Source.POLICY
    until(lambda: decider.coming is None, decider)
    assert decider.status()["name"] == "fcfs"
    assert answer(decider, state)[0] is Source.POLICY


def test_change_to_a_policy_of_another_pool_is_refused(started: Started) -> None:
    decider, _ = started(wait_s=0)
    with pytest.raises(UserError, match=r"aegaeon: it needs another pool \(roles, dispatch"):
        decider.change("aegaeon")
    with pytest.raises(UserError, match="did you mean 'fcfs'"):
        decider.change("fcsf")


@pytest.mark.parametrize("name", ["seer", "serverlessllm_plus"])
def test_oracle_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"policy.name={name}: it knows output lengths"):
        make(FACTORY, name)


def test_factory_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"policy.factory=nothing:make: expected module:function"):
        make("nothing:make", "index")


def test_dedicated_policy_serves_from_its_placement(started: Started) -> None:
    decider, state = started("dedicated")
    assert sorted(state.slots["model"][:, 0]) == [0, 1]
    arrive(state, 0, 1)
    kind, index = next_decision(state)
    event = np.zeros(1, EVENT)
    pose(state, kind, index, event[0])
    assert kind == DecisionKind.ROUTE
    assert decider.decide(state, kind, index, event[0]) is Source.POLICY
    assert event["instance"] == np.flatnonzero(state.slots["model"][:, 0] == 1)


def test_policy_that_cannot_start_is_told() -> None:
    source = PolicySource(name="index", factory=FACTORY)
    decider = Decider(source, make(FACTORY, "index"), SPEC, pool_of(SPEC))
    decider.name = "missing"
    with pytest.raises(UserError, match=r"policy.name=missing: UserError: policies='missing'"):
        decider.start(60.0)
    decider.close()
