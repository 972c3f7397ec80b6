"""The run folder: summary.json, results.parquet and what else a verb leaves, each written whole."""

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from os import getpid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.core import PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.errors import UserError
from traces import Trace
from traces.statistics import Surveyed

SCHEMA = "aegaeon-rl/summary/1"
Row = Mapping[str, Any]


def open_folder(path: Path, key: str = "run.dir") -> Path:
    """Make the folder. Raises UserError that names `key` where it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}: expected a folder to write") from None
    return path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file to write that then takes the place of `path`; a failure leaves `path` as it was."""
    aside = path.with_name(f".{path.name}.{getpid()}.part")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8; what of a file's name is not UTF-8 is escaped."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as Parquet; all have the keys of the first."""
    table = pa.Table.from_pylist([dict(row) for row in rows])
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def summary(
    verb: str,
    seed: int,
    trace: Trace | Surveyed | None,
    pool: PoolSpec | None,
    slo: SloSpec | None,
    results: Sequence[Row],
) -> dict[str, Any]:
    """The keys that every summary.json has; what a verb does not use is null."""
    return {
        "schema": SCHEMA,
        "verb": verb,
        "seed": seed,
        "commit": commit(),
        "trace": None if trace is None else trace_facts(trace),
        "pool": None if pool is None else pool_facts(pool),
        "slo": None if slo is None else slo_facts(slo),
        "profile": None if pool is None else profile_facts(pool.profile),
        "results": list(results),
    }


def write_summary(path: Path, content: Mapping[str, Any]) -> None:
    """JSON has no infinity: what is not finite becomes null."""
    write_text(path, json.dumps(_finite(content), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def trace_facts(trace: Trace | Surveyed) -> dict[str, Any]:
    present = len(trace.models) if isinstance(trace, Trace) else trace.facts.models
    return {
        "name": trace.name,
        "kind": str(trace.kind),
        "requests": trace.requests,
        "models": present,
        "sha256": trace.sha256,
        "span_s": trace.span_s,
        "licence": trace.licence,
        "lineage": list(trace.lineage),
    }


def slo_facts(slo: SloSpec) -> dict[str, Any]:
    """What holds for all; `models` only where some have their own, each in full."""
    facts: dict[str, Any] = {"ttft_s": slo.ttft_s, "tbt_s": slo.tbt_s}
    own = {name: slo_facts(slo.of(name)) for name in slo.models or ()}
    return {**facts, "models": own} if own else facts


def pool_facts(pool: PoolSpec) -> dict[str, Any]:
    return {
        "name": pool.name,
        "gpus": pool.gpus,
        "tp": pool.tp,
        "nodes": pool.nodes,
        "weight_slots": pool.weight_slots,
        "h2d_gb_s": pool.h2d_bytes_s / 1e9,
        "sosp25_rules": pool.sosp25_rules,
    }


def profile_facts(name: str) -> dict[str, str]:
    profile = load_profile(name)
    return {
        "name": profile.name,
        "gpu": profile.gpu,
        "kind": profile.kind,
        "source": profile.source,
    }


def commit() -> str:
    """The checkout's commit (`-dirty` with uncommitted changes), else the installed version."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True)
        return done.stdout.decode().strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {version('aegaeon-rl')}"
