"""The compiler door: two decorators for kernels, one cache folder keyed by the sources.

Numba's own cache index looks at the file a function is written in, not at the callees it inlined
from other files, so a changed callee would leave stale machine code behind. The folder name is
therefore a hash of every source that holds a kernel or its constants; older folders are pruned.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from runtime.libraries import part, whole

F = TypeVar("F", bound=Callable[..., Any])

PACKAGES = ("traces", "runtime", "envs", "aegaeon_rl")
CONSTANTS = ("core.py", "state.py")  # their values are frozen into the machine code
MARKS = (
    b"@kernel",
    b"@inner",
    b"(CPUDispatcher)",
    b"(Tables)",
)  # a layout's field order is machine code too
FOLDERS_KEPT = 4


def source_hash(root: Path) -> str:
    """Hash of the project's kernel sources below `root`, 16 hex digits."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            text = path.read_bytes()
            if path.name in CONSTANTS or any(mark in text for mark in MARKS):
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + text)
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    base = Path(os.environ.get("AEGAEON_RL_CACHE") or Path(home) / "aegaeon-rl") / "kernels"
    folder = base / source_hash(Path(__file__).resolve().parent.parent)
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(base.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for stale in others[FOLDERS_KEPT:]:
            shutil.rmtree(stale, ignore_errors=True)
    return folder


numba.config.CACHE_DIR = str(_cache_folder())


def kernel(function: F) -> F:
    """Compile `function` for callers in Python too, once for all processes: no GIL, errors as
    NumPy has them."""
    jitted: Any = whole(function)
    jitted.enable_caching()
    return cast(F, jitted)


def inner(function: F) -> F:
    """Compile `function` as a part of the kernels that call it."""
    return cast(F, part(function))
