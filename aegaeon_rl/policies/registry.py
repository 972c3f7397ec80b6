"""The names of all schedulers. A new policy is one file and one line here."""

from collections.abc import Callable
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path

from aegaeon_rl.policies.learned import FILE, Learned
from aegaeon_rl.policies.tuned import load_policy, shipped
from runtime.errors import UserError, nearest
from runtime.protocol import Policy


def _lazy(module: str, factory: str) -> Callable[[], Policy]:
    def make() -> Policy:
        policy: Policy = getattr(import_module(f"aegaeon_rl.policies.{module}"), factory)()
        return policy

    return make


def _variant(factory: str, base: str) -> Callable[[], Policy]:
    def make() -> Policy:
        policy: Policy = getattr(import_module("aegaeon_rl.policies.variants"), factory)(
            make_policy(base)
        )
        return policy

    return make


def _shipped() -> Policy:
    with as_file(files("aegaeon_rl.policies") / "data" / "learned.npz") as path:
        return Learned.load(path)


def _tuned(name: str) -> Callable[[], Policy]:
    return lambda: shipped(name)


POLICIES: dict[str, Callable[[], Policy]] = {
    "aegaeon": _lazy("aegaeon", "Aegaeon"),
    "aegaeon_tuned": _tuned("aegaeon_tuned"),
    "serverlessllm": _lazy("serverlessllm", "ServerlessLlm"),
    "serverlessllm_plus": _lazy("serverlessllm_plus", "ServerlessLlmPlus"),
    "muxserve": _lazy("muxserve", "MuxServe"),
    "dedicated": _lazy("dedicated", "Dedicated"),
    "fcfs": _lazy("heuristics", "fcfs"),
    "least_slack": _lazy("heuristics", "least_slack"),
    "collate": _lazy("heuristics", "collate"),
    "index": _lazy("heuristics", "index"),
    "index_untuned": _lazy("heuristics", "index_untuned"),
    "learned": _shipped,
}

VARIANTS: dict[str, Callable[[], Policy]] = {  # opponents by physics, and bounds
    "autoscaled": _variant("autoscaled", "fcfs"),
    "vllm_sleep": _variant("vllm_sleep", "fcfs"),
    "index_free_switches": _variant("free_switches", "index"),
    "index_known_switches": _variant("known_switches", "index"),
}


def make_policy(name: str, key: str = "policies") -> Policy:
    """A policy by name, a trained one by its folder (or the folder's weights.npz), or a tuned one
    by its policy.json.

    Raises UserError that names `key`, with the nearest name.
    """
    if name in POLICIES or name in VARIANTS:
        return (POLICIES | VARIANTS)[name]()
    path = Path(name)
    if path.is_dir():
        path = path / FILE
    if path.suffix == ".npz":
        return Learned.load(path, name=name.rstrip("/"))
    if path.suffix == ".json":
        return load_policy(path, name)
    raise UserError(
        f"{key}={name!r}: {nearest(name, POLICIES)}; or a folder with {FILE}, or a policy.json"
    )
