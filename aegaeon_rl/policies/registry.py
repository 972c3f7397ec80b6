"""The names of all schedulers. A new policy is one file and one line here."""

from collections.abc import Callable
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path

from aegaeon_rl.policies.learned import FILE, Learned
from runtime.errors import UserError, nearest
from runtime.protocol import Policy


def _lazy(module: str, factory: str) -> Callable[[], Policy]:
    def make() -> Policy:
        policy: Policy = getattr(import_module(f"aegaeon_rl.policies.{module}"), factory)()
        return policy

    return make


def _shipped() -> Policy:
    with as_file(files("aegaeon_rl.policies") / "data" / "learned.npz") as path:
        return Learned.load(path)


POLICIES: dict[str, Callable[[], Policy]] = {
    "aegaeon": _lazy("aegaeon", "Aegaeon"),
    "serverlessllm": _lazy("serverlessllm", "ServerlessLlm"),
    "serverlessllm_plus": _lazy("serverlessllm_plus", "ServerlessLlmPlus"),
    "muxserve": _lazy("muxserve", "MuxServe"),
    "dedicated": _lazy("dedicated", "Dedicated"),
    "fcfs": _lazy("heuristics", "fcfs"),
    "least_slack": _lazy("heuristics", "least_slack"),
    "collate": _lazy("heuristics", "collate"),
    "index": _lazy("heuristics", "index"),
    "learned": _shipped,
}


def make_policy(name: str, key: str = "policies") -> Policy:
    """A policy by name, or a trained one by its folder (or the folder's weights.npz).

    Raises UserError that names `key`, with the nearest name.
    """
    if name in POLICIES:
        return POLICIES[name]()
    path = Path(name)
    if path.is_dir():
        path = path / FILE
    if path.suffix == ".npz":
        return Learned.load(path, name=name.rstrip("/"))
    raise UserError(f"{key}={name!r}: {nearest(name, POLICIES)}; or a folder with {FILE}")
