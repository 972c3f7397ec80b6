"""Processes of a module each, beside the workers: they inherit descriptors, not memory, and never
outlive who started them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PRIORITY = -10  # nice value


def spawn(module: str, fds: Sequence[int], *arguments: str) -> subprocess.Popen[bytes]:
    """`python -m MODULE FD... ARGUMENT...` with what this process can import. OSError if not."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, fds), *arguments],
        pass_fds=fds,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
    )


def end(child: subprocess.Popen[bytes], patience_s: float = 0.0) -> None:
    """Reap a process, killed where it takes longer to end by itself."""
    try:
        child.wait(patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def own() -> list[int]:
    """Processes that this one started, or had started for it, and that are not reaped."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def end_since(before: Collection[int]) -> None:
    """Kill and reap this process's own that were not there `before`: the fork server and its like,
    which would take their time."""
    for pid in set(own()) - set(before):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def settle_in(name: str, *, dies_at_once: bool = True) -> None:
    """At a child's start: it dies with its parent, leaves signals to it, and `ps` shows `name`.
    `dies_at_once=False`: it sees the parent's end by itself and has something to say then."""
    if dies_at_once:
        die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    title(f"aegaeon-rl {name}")


def die_with_parent() -> None:
    """SIGKILL when the thread that started this process ends; at once if it has already."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def hurry() -> None:
    """Ahead of the workers' long computations, where the system lets us."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)


def title(text: str) -> None:
    """What `ps` shows, where setproctitle is installed."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(text)
