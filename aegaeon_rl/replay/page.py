"""`report.html` of a replay, and its sentences for the terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from aegaeon_rl.evaluation.report import cell_text, counted, percent
from aegaeon_rl.replay import figures
from aegaeon_rl.replay.accounting import Floats
from aegaeon_rl.replay.load import Load, Outcome, Status
from runtime.core import SloSpec
from runtime.pool.state import Table

TABLE = (  # metric, heading, kind, meaning
    ("token_attainment", "tokens on time", "share", "of all tokens that were due"),
    ("qos", "qos", "share", "the SOSP'25 artifact's lenient measure"),
    ("request_ok", "requests ok", "share", "with 99 % of their tokens on time"),
    ("request_lost", "requests lost", "share", "with under 50 %"),
    ("worst_model", "worst models", "share", "5th percentile of token attainment over models"),
    ("goodput_tokens_s", "goodput tok/s", "count", "tokens on time, per second of the trace"),
    ("tokens_s", "all tokens tok/s", "count", "per second of the replay"),
    ("ttft_p50_s", "TTFT p50", "seconds", "from the arrival that the trace states"),
    ("ttft_p95_s", "TTFT p95", "seconds", ""),
    ("ttft_p99_s", "TTFT p99", "seconds", ""),
    ("tbt_p50_s", "TBT p50", "fine", "between tokens of a request"),
    ("tbt_p99_s", "TBT p99", "fine", ""),
    ("stall_p50_s", "stall p50", "fine", "longest gap of a request"),
    ("stall_p99_s", "stall p99", "fine", ""),
    ("offered_requests_s", "offered requests/s", "fine_count", ""),
    ("most_in_flight", "most under way", "count", "requests at once"),
    ("backlog_slope", "backlog growth", "fine_count", "requests under way, per second"),
)
WARN_LATE_S = 0.05
WARN_PROMPT = 0.02


def text_of(value: Any, kind: str) -> str:
    if value is None or value != value:
        return "n/a"
    if kind == "fine" and value != float("inf"):
        return f"{1e3 * value:,.1f} ms" if value < 1 else f"{value:.2f} s"
    if kind == "fine_count":
        return f"{value:.2f}"
    return cell_text(value, "seconds" if kind == "fine" else kind)


def answer(load: Load, row: Mapping[str, Any]) -> str:
    """What came of it, in one sentence."""
    job = load.job
    served = sum(outcome.status is Status.DONE for outcome in load.outcomes)
    return (
        f"Of {job.trace.requests:,} requests of {counted(len(job.trace.models), 'model')} in"
        f" {job.trace.span_s:,.0f} s, {served:,} were served;"
        f" {percent(row['token_attainment'])} of all tokens came on time, the first after"
        f" {text_of(row['ttft_p50_s'], 'fine')} (median) and {text_of(row['ttft_p99_s'], 'fine')}"
        " (99th percentile)."
    )


def reasons(outcomes: Sequence[Outcome], most: int = 8) -> list[dict[str, Any]]:
    """Why requests were not served, the most frequent first."""
    found = Counter((o.status.value, o.reason) for o in outcomes if o.status is not Status.DONE)
    return [
        {"status": status, "reason": reason or "not sent", "requests": many}
        for (status, reason), many in found.most_common(most)
    ]


def warnings(load: Load, row: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a number."""
    job = load.job
    lines: list[str] = []
    if load.is_interrupted:
        lines.append("Interrupted: what was under way, or not sent, counts as not served.")
    if load.has_given_up:
        unsent = sum(outcome.status is Status.UNSENT for outcome in load.outcomes)
        lines.append(
            f"The endpoint went out of reach for {job.spec.give_up_s:g} s: {unsent:,} requests were"
            " not sent."
        )
    if row["send_late_p99_s"] > WARN_LATE_S:
        lines.append(
            f"This machine sent late: {text_of(row['send_late_p99_s'], 'fine')} at the 99th"
            " percentile. It is too busy for this load, and its delay counts against the endpoint."
        )
    if not job.dialect.ignores_end:
        short = sum(o.answer.finish == "stop" for o in load.outcomes)
        lines.append(
            f"The endpoint refused ignore_eos: {short:,} answers ended by themselves; they owed the"
            " tokens they brought."
        )
    if not job.dialect.by_ids and row["prompt_tokens_off"] is None:
        lines.append("The endpoint does not count prompt tokens: a word was taken for a token.")
    elif (row["prompt_tokens_off"] or 0) > WARN_PROMPT:
        lines.append(
            f"Prompts were {percent(row['prompt_tokens_off'])} off the trace's lengths on average,"
            " as the endpoint counts them."
        )
    return [*lines, *spread(load)]


def spread(load: Load) -> list[str]:
    """Answers whose events brought several tokens without telling how many each."""
    answers = [o.answer for o in load.outcomes if o.answer.at_s]
    many = sum(not answer.is_exact for answer in answers)
    if not many:
        return []
    return [
        f"{many:,} of {len(answers):,} answers brought other than one token an event: their tokens"
        " are spread evenly over events, so gaps between tokens are approximate."
    ]


def facts(load: Load, row: Mapping[str, Any], slo: SloSpec) -> list[str]:
    job = load.job
    trace = job.trace
    targets = len(set(job.targets))
    return [
        f"Trace: {trace.name} ({trace.kind}), {trace.requests:,} requests of"
        f" {counted(len(trace.models), 'model')} in {trace.span_s:,.1f} s, sent at their arrival"
        " whatever became of those before (open loop).",
        f"Endpoint: {job.spec.url}, asked at {job.dialect};"
        f" {counted(targets, 'model')} of it took the load.",
        f"SLO: first token within {slo.ttft_s:g} s, then one every {1e3 * slo.tbt_s:g} ms; token i"
        " is on time if it appears by arrival + TTFT + i * TBT. A request that was not served owes"
        " all its tokens.",
        f"Sent {text_of(row['send_late_p50_s'], 'fine')} after its arrival (median),"
        f" {text_of(row['send_late_p99_s'], 'fine')} at the 99th percentile, at most"
        f" {text_of(row['send_late_max_s'], 'fine')}; {load.door.dialled:,} connections.",
    ]


def model_rows(load: Load, results: Table, most: int = 40) -> list[dict[str, Any]]:
    """What each model got, the worst first."""
    found: list[dict[str, Any]] = []
    for m, name in enumerate(load.job.trace.models):
        own = results[results["model"] == m]
        first = (own["first_token_ns"] - own["arrival_ns"])[own["first_token_ns"] >= 0] / 1e9
        found.append(
            {
                "model": name,
                "target": load.job.targets[m],
                "requests": len(own),
                "share": float(own["on_time_tokens"].sum() / own["due_tokens"].sum()),
                "ttft": text_of(float(np.median(first)) if len(first) else None, "fine"),
            }
        )
    found.sort(key=lambda entry: (entry["share"], entry["model"]))
    return [{**entry, "share": percent(entry["share"])} for entry in found[:most]]


def render(
    load: Load,
    results: Table,
    gaps: Floats,
    row: Mapping[str, Any],
    slo: SloSpec,
    *,
    command: str,
    commit: str,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("aegaeon_rl.replay"),
                jinja2.PackageLoader("aegaeon_rl.evaluation"),
            ]
        ),
        autoescape=True,
        trim_blocks=True,
    )
    return environment.get_template("replay.html.j2").render(
        answer=answer(load, row),
        warnings=warnings(load, row),
        facts=facts(load, row, slo),
        table=[(heading, text_of(row[key], kind), note) for key, heading, kind, note in TABLE],
        reasons=reasons(load.outcomes),
        models=model_rows(load, results),
        all_models=len(load.job.trace.models),
        figures={
            "over_time": figures.over_time(load, row["run_s"]),
            "first_tokens": figures.first_tokens(results, slo),
            "waiting": figures.waiting(results, gaps),
            "models": figures.models(results),
        },
        command=command,
        commit=commit,
    )
