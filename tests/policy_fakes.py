"""Policies that misbehave, each in the way its name says; all others are the registry's."""

import ctypes
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.core import EventKind, PoolSpec
from runtime.pool.state import Record, State


def raises(event: Record) -> None:
    raise RuntimeError("no idea\nat all")


def stalls(event: Record) -> None:
    time.sleep(600)


def dawdles(event: Record) -> None:
    time.sleep(0.05)


def holds_gil(event: Record) -> None:
    ctypes.PyDLL(None).sleep(600)


def nan(event: Record) -> None:
    event["kind"], event["x"] = EventKind.TURN, np.nan


def nan_quota(event: Record) -> None:
    event["quota_ns"] = np.nan


def masked(event: Record) -> None:
    event["kind"], event["model"] = EventKind.TURN, 1


def nowhere(event: Record) -> None:
    event["kind"], event["model"] = EventKind.TURN, 1 << 40


def other(event: Record) -> None:
    event["kind"], event["model"], event["instance"] = EventKind.TURN, 0, 1


def idles(event: Record) -> None:
    event["kind"] = EventKind.IDLE


def dies(event: Record) -> None:
    os._exit(3)


FAULTS = {
    f.__name__: f
    for f in (
        *(raises, stalls, dawdles, holds_gil, nan, nan_quota, masked, nowhere, other, idles, dies),
    )
}


def registered(name: str) -> Any:
    """Imported when asked for: a process of a fake starts twice as fast without."""
    from aegaeon_rl.policies.registry import make_policy

    return make_policy(name)


@dataclass(frozen=True, slots=True)
class Faulty:
    """Remembers nothing; misbehaves where there is a request, so that it can start."""

    name: str

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return registered("index").configure(pool)

    def memory(self, state: State) -> Any:
        return None

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        if state.pool["in_flight"][0] > 0:
            FAULTS[self.name](event)

    def drive(self, sim: Any, memory: Any) -> int:
        raise NotImplementedError


class Seer(Faulty):
    """An oracle."""

    def foresee(self, memory: Any, output_tokens: Any) -> None:
        raise NotImplementedError


def make(name: str) -> Any:
    if name == "seer":
        return Seer(name)
    return Faulty(name) if name in FAULTS else registered(name)
