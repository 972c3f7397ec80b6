"""What one policy did in the first window, in full: decisions, requests, a trace for Perfetto."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from aegaeon_rl.evaluation.compare import Plan, last_deadline_s, window_trace
from aegaeon_rl.evaluation.record import written_aside
from runtime.core import NONE, NS, RequestPhase
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state, run
from runtime.errors import UserError, nearest
from runtime.pool.placement import preload
from runtime.pool.state import Table
from runtime.protocol import Policy
from runtime.timeline.decisions import decision_log, named, nullable
from runtime.timeline.replay import timeline
from runtime.timeline.spans import Timeline
from runtime.timeline.trace_events import trace_events, write_trace

EXPORTS = ("decisions.parquet", "requests.parquet", "trace.json.gz")


class Recording(NamedTuple):
    """A stretch of the first window under one policy, at the trace's own load."""

    policy: str
    models: tuple[str, ...]
    journal: Table
    timeline: Timeline


def record_window(plan: Plan, policy: Policy, start_s: float, end_s: float) -> Recording:
    """Run the first window to `end_s` and keep what overlaps [start_s, end_s)."""
    part, _ = window_trace(plan.trace, plan.windows[0], 1.0)
    done = run(part, plan.pool, policy, plan.slo, horizon_s=end_s, journal=True)
    fresh = build_state(done.pool, part.models, plan.slo, load_profile(done.pool.profile))
    preload(fresh, done.placement)
    shown = timeline(fresh, done.journal, start_ns=round(start_s * NS), end_ns=round(end_s * NS))
    return Recording(policy.name, part.models, done.journal, shown)


def exported(plan: Plan, policies: Sequence[Policy], best: str) -> Policy:
    """The policy that `evaluate.export_policy` names, or the best. Raises UserError."""
    name = plan.spec.export_policy or best
    names = [policy.name for policy in policies]
    if name not in names:
        raise UserError(
            f"evaluate.export_policy={name}: not among policies; {nearest(name, names)}"
        )
    return policies[names.index(name)]


def write_exports(folder: Path, plan: Plan, policy: Policy) -> None:
    """EXPORTS: every request of the first window; decisions and trace of the first `export_s`
    of it that count, or until its last token is due."""
    window = plan.windows[0]
    part, _ = window_trace(plan.trace, window, 1.0)
    end_s = min(window.warm_s + plan.spec.export_s, last_deadline_s(part, plan.slo))
    recording = record_window(plan, policy, window.warm_s, end_s)
    log = decision_log(recording.timeline, recording.journal, part.models)
    about = {
        "policy": policy.name,
        "trace": plan.trace.name,
        "pool": plan.pool.name,
        "profile": plan.pool.profile,
        "start_s": window.start_s + window.warm_s,
    }
    write_columns(folder / EXPORTS[0], log)
    write_columns(folder / EXPORTS[1], request_table(plan, policy))
    with written_aside(folder / EXPORTS[2]) as aside:
        write_trace(aside, trace_events(recording.timeline, part.models), about)


def write_columns(path: Path, table: pa.Table) -> None:
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def request_table(plan: Plan, policy: Policy) -> pa.Table:
    """A row per request of the first window, as the comparison ran it; `request` is what decisions
    and trace call it, times are seconds of the window, null: no token came."""
    window = plan.windows[0]
    part, _ = window_trace(plan.trace, window, 1.0)
    done = run(part, plan.pool, policy, plan.slo, horizon_s=last_deadline_s(part, plan.slo))
    results = done.results
    has_token = results["first_token_ns"] != NONE
    return pa.table(
        {
            "request": range(len(results)),
            "model": named(results["model"], dict(enumerate(part.models))),
            "arrival_s": results["arrival_ns"] / NS,
            "first_token_s": nullable(results["first_token_ns"] / NS, has_token),
            "last_token_s": nullable(results["last_token_ns"] / NS, has_token),
            "prompt_tokens": results["prompt_tokens"],
            "due_tokens": results["due_tokens"],
            "emitted_tokens": results["emitted_tokens"],
            "on_time_tokens": results["on_time_tokens"],
            "stall_s": results["stall_ns"] / NS,
            "qos": results["qos"],
            "phase": named(results["phase"], {p: p.name.lower() for p in RequestPhase}),
            "is_counted": results["arrival_ns"] >= round(window.warm_s * NS),
        }
    )
