"""What an operator may ask and order: the calls of the HTTP side, each a function of its arguments.

An answer is plain data; a refusal is a UserError's line.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from runtime.core import NONE, Stage
from runtime.errors import UserError, nearest
from runtime.pool.state import State
from runtime.service.decider import Decider
from runtime.service.messages import Call, Reply
from runtime.service.metrics import Metrics

log = logging.getLogger("aegaeon_rl.operations")


class Operated(Protocol):
    """What of a controller an operator may see and order."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def state(self) -> State: ...

    @property
    def decider(self) -> Decider: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def status(self) -> str:
        """ "ok", "starting" or "draining"."""

    def snapshot(self) -> Any:
        """What the page shows."""

    def drain(self) -> None:
        """Take no more requests; end when those in flight have."""

    def load(self, model: str, path: str | None) -> None: ...

    def unload(self, model: str) -> None: ...

    def pin(self, model: str, is_pinned: bool) -> None: ...

    def hosted(self) -> Mapping[str, Mapping[str, Any]]:
        """Of each model: where its weights come from, in host memory or not, pinned or not."""


class Operations:
    """`policies` are the names an operator may choose from."""

    def __init__(self, pool: Operated, policies: Sequence[str] = ()) -> None:
        self.pool, self.policies = pool, policies
        self.calls: dict[str, Callable[..., Any]] = {
            "health": self.health,
            "metrics": self.metrics,
            "snapshot": pool.snapshot,
            "state": self.state,
            "models": self.models,
            "load": self.load,
            "unload": self.unload,
            "pin": self.pin,
            "policies": self.list_policies,
            "policy": self.set_policy,
            "drain": self.drain,
        }

    def answer(self, call: Call) -> Reply:
        """Never raises: what goes wrong is the reply's error, ours with a traceback in the log."""
        try:
            operation = self.calls.get(call.name)
            if operation is None:
                raise UserError(f"{call.name}: no such call; {nearest(call.name, self.calls)}")
            return Reply(call=call.call, value=operation(**call.arguments))
        except UserError as error:
            return Reply(call=call.call, error=str(error))
        except Exception as error:  # the boundary to another process
            log.exception("call %s", call.name, extra={"call": call.name, "by": call.by})
            line = " ".join(str(error).split())
            return Reply(call=call.call, error=f"{call.name}: {type(error).__name__}: {line}")

    # questions

    def health(self) -> dict[str, Any]:
        stages = self.pool.state.instances["stage"]
        return {
            "status": self.pool.status,
            "instances": len(stages),
            "instances_up": int((stages != Stage.DOWN).sum()),
            "policy_is_up": self.pool.decider.process is not None,
        }

    def metrics(self) -> str:
        self.pool.metrics.in_charge(self.pool.decider.status()["name"])
        return self.pool.metrics.text()

    def state(self) -> dict[str, Any]:
        """The pool in plain numbers; the page's snapshot says more."""
        state, names = self.pool.state, self.pool.names
        return {
            "status": self.pool.status,
            "time_s": int(state.pool["now_ns"][0]) / 1e9,
            "requests_in_flight": int(state.pool["in_flight"][0]),
            "instances": [instance_facts(state, g, names) for g in range(len(state.instances))],
            "queues": queues(state, names),
            "policy": self.pool.decider.status(),
        }

    def models(self) -> list[dict[str, Any]]:
        state, hosted = self.pool.state, self.pool.hosted()
        slots = state.slots["model"]
        return [
            {
                "name": name,
                "weight_bytes": int(state.models["weight_bytes"][m]),
                "loaded_on": [g for g in range(len(slots)) if m in slots[g]],
                **hosted.get(name, {}),
            }
            for m, name in enumerate(self.pool.names)
        ]

    def list_policies(self) -> dict[str, Any]:
        return {**self.pool.decider.status(), "known": list(self.policies)}

    # orders

    def set_policy(self, name: str) -> dict[str, Any]:
        self.pool.decider.change(name)
        log.info("policy %s takes over when it is ready", name, extra={"policy": name})
        return self.pool.decider.status()

    def load(self, model: str, path: str | None = None) -> dict[str, Any]:
        if path is None:
            self._known(model)
        self.pool.load(model, path)
        return {"model": model, **self.pool.hosted().get(model, {})}

    def unload(self, model: str) -> dict[str, Any]:
        self.pool.unload(self._known(model))
        return {"model": model, **self.pool.hosted().get(model, {})}

    def pin(self, model: str, is_pinned: bool = True) -> dict[str, Any]:
        self.pool.pin(self._known(model), is_pinned)
        return {"model": model, **self.pool.hosted().get(model, {})}

    def drain(self) -> dict[str, Any]:
        self.pool.drain()
        return self.health()

    def _known(self, model: str) -> str:
        if model not in self.pool.names:
            raise UserError(f"model={model}: not served; {nearest(model, self.pool.names)}")
        return model


def instance_facts(state: State, g: int, names: Sequence[str]) -> dict[str, Any]:
    inst = state.instances[g]
    model = int(inst["model"])
    held = [int(m) for m in state.slots["model"][g] if m != NONE]
    return {
        "instance": g,
        "epoch": int(inst["epoch"]),
        "stage": Stage(int(inst["stage"])).name.lower(),
        "model": names[model] if model != NONE else None,
        "held": [names[m] for m in held],
        "kv_bytes": int(inst["kv_used_bytes"]),
        "switches": int(inst["switches"]),
    }


def queues(state: State, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Requests that no turn owns, by model: without KV, with it."""
    counts, n_models = state.lists["count"], len(state.models)
    return {
        name: {"waiting": int(counts[m]), "ready": int(counts[n_models + m])}
        for m, name in enumerate(names)
    }
