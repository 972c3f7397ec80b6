"""Outcomes in the pool's own measures: token by token through `runtime.slo`, as the core counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aegaeon_rl.evaluation.metrics import Sample, backlog_slope, metrics, quantile
from aegaeon_rl.replay.load import Job, Load, Outcome, Status
from runtime.core import NONE, NS, RequestPhase, SloSpec
from runtime.emulator.tables import RESULT
from runtime.pool.state import GAP_BINS, REQUEST, Table
from runtime.slo import account_run, qos_of

Floats = npt.NDArray[np.float64]
PHASE_OF = {
    Status.DONE: RequestPhase.DONE,
    Status.SHED: RequestPhase.SHED,
    Status.CANCELLED: RequestPhase.CANCELLED,
}
UNKNOWN = ("switches", "prefetched_switches", "switch_share", "gpu_busy", "recomputed")


def token_times_s(load: Load, outcome: Outcome) -> Floats:
    """Seconds since the replay's start."""
    return outcome.answer.token_s() - load.start_s


def due_tokens(job: Job, outcome: Outcome) -> int:
    """What was asked for; an answer that ended itself owed what it brought."""
    asked = job.output_tokens(outcome.request)
    is_short = outcome.status is Status.DONE and 0 < outcome.answer.tokens < asked
    return outcome.answer.tokens if is_short else asked


def accounted(load: Load, slo: SloSpec) -> Table:
    """A RESULT row for each outcome; the clock starts at the arrival that the trace states, so a
    request that left late has less time."""
    trace = load.job.trace
    results = np.zeros(len(load.outcomes), RESULT)
    results["arrival_ns"] = np.rint(trace.arrival_s * NS)
    results["model"], results["first_token_ns"] = trace.model, NONE
    own = [slo.of(name) for name in trace.models]
    for row, outcome in enumerate(load.outcomes):
        result, model = results[row], own[trace.model[row]]
        result["prompt_tokens"] = load.job.prompt_tokens(row)
        result["due_tokens"] = due_tokens(load.job, outcome)
        result["phase"] = PHASE_OF.get(outcome.status, RequestPhase.FAILED)
        result["last_token_ns"] = round(outcome.end_s * NS)
        times_ns = np.rint(token_times_s(load, outcome) * NS).astype(np.int64)
        if len(times_ns):
            fill(result, times_ns, round(model.ttft_s * NS), round(model.tbt_s * NS))
    return results


def fill(result: Any, times_ns: npt.NDArray[np.int64], ttft_ns: int, tbt_ns: int) -> None:
    """Charge tokens to a row, one by one."""
    request = np.zeros(1, REQUEST)
    request["arrival_ns"], request["first_token_ns"] = result["arrival_ns"], NONE
    request["qos_target_ns"] = ttft_ns
    for time_ns in times_ns.tolist():
        account_run(request, 0, ttft_ns, tbt_ns, time_ns, 0.0, 0.0, 1)
    for name in ("first_token_ns", "last_token_ns", "stall_ns", "emitted_tokens", "on_time_tokens"):
        result[name] = request[name][0]
    result["on_time_tokens"] = min(result["on_time_tokens"], result["due_tokens"])
    result["qos"] = qos_of(request, 0, result["phase"] == RequestPhase.DONE)


def gaps_s(load: Load) -> Floats:
    """Gaps between tokens of a request, of all requests."""
    each = [np.diff(token_times_s(load, outcome)) for outcome in load.outcomes]
    return np.concatenate(each) if each else np.empty(0)


def measured(load: Load, results: Table, gaps: Floats) -> dict[str, Any]:
    """The metrics of a row of `results`; those that an endpoint does not tell are None."""
    span_s = max(load.job.trace.span_s, 1e-9)
    end_s = max((outcome.end_s for outcome in load.outcomes), default=0.0)
    sample = Sample(
        results=results,
        gaps=np.zeros(GAP_BINS, np.int64),
        span_s=max(span_s, end_s) if load.job.trace.requests == 1 else span_s,
        run_s=end_s,
        gpu_s=0.0,
        busy_s=0.0,
        switch_s=0.0,
        switches=0,
        prefetched_switches=0,
        backlog_slope=backlog_slope(results, 0.0, span_s),
        refused=0,
        recomputed=0,
    )
    late_s = lateness_s(load)
    return {
        **metrics(sample),
        **dict.fromkeys(UNKNOWN),
        "tbt_p50_s": quantile(gaps, 0.5),
        "tbt_p99_s": quantile(gaps, 0.99),
        "refused": count(load.outcomes, Status.REFUSED),
        "shed": count(load.outcomes, Status.SHED),
        "output_tokens": int(results["emitted_tokens"].sum()),
        "tokens_s": float(results["emitted_tokens"].sum() / max(end_s, 1e-9)),
        "run_s": end_s,
        "most_in_flight": most_in_flight(load.outcomes),
        "prompt_tokens_off": prompt_error(load, results),
        "send_late_p50_s": quantile(late_s, 0.5),
        "send_late_p99_s": quantile(late_s, 0.99),
        "send_late_max_s": float(late_s.max(initial=0.0)),
    }


def count(outcomes: Sequence[Outcome], status: Status) -> int:
    """How many ended so."""
    return sum(outcome.status is status for outcome in outcomes)


def lateness_s(load: Load) -> Floats:
    """How much later than its arrival each request left."""
    pairs = zip(load.outcomes, load.job.trace.arrival_s.tolist(), strict=True)
    return np.array([o.sent_s - a for o, a in pairs if o.sent_s is not None])


def most_in_flight(outcomes: Sequence[Outcome]) -> int:
    """Requests under way at once."""
    sent = [(o.sent_s, o.end_s) for o in outcomes if o.sent_s is not None]
    steps = sorted([(s, 1) for s, _ in sent] + [(e, -1) for _, e in sent])
    return int(np.cumsum([step for _, step in steps]).max(initial=0))


def prompt_error(load: Load, results: Table) -> float | None:
    """Mean relative error of prompt lengths as the endpoint counts them; None: it does not."""
    pairs = zip(load.outcomes, results["prompt_tokens"].tolist(), strict=True)
    off = [
        abs(o.answer.usage.prompt_tokens / asked - 1)
        for o, asked in pairs
        if o.answer.usage.prompt_tokens is not None
    ]
    return float(np.mean(off)) if off else None


def rows(load: Load, results: Table) -> list[dict[str, Any]]:
    """A row a request, with the columns of a request log, so that it reads as a trace again."""
    job, names = load.job, load.job.trace.models
    return [
        {
            "arrival_s": result["arrival_ns"] / NS,
            "model": names[result["model"]],
            "prompt_tokens": int(result["prompt_tokens"]),
            "output_tokens": int(result["emitted_tokens"]),
            "request_id": str(outcome.request),
            "status": outcome.status.value,
            "first_token_s": None if result["first_token_ns"] == NONE
            else result["first_token_ns"] / NS,
            "last_token_s": None if result["first_token_ns"] == NONE
            else result["last_token_ns"] / NS,
            "tokens_on_time": int(result["on_time_tokens"]),
            "due_tokens": int(result["due_tokens"]),
            "served_model": job.targets[result["model"]],
            "sent_s": outcome.sent_s,
            "end_s": outcome.end_s,
            "stall_s": result["stall_ns"] / NS,
            "qos": float(result["qos"]),
            "counted_prompt_tokens": outcome.answer.usage.prompt_tokens,
            "finish_reason": outcome.answer.finish,
            "http_status": outcome.http_status,
            "reason": outcome.reason,
        }
        for outcome, result in zip(load.outcomes, results, strict=True)
    ]  # fmt: skip
