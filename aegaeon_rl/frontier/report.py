"""`report.html` of a frontier: the answer first, from what summary.json holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from aegaeon_rl.evaluation.report import Section, cell_text, percent
from aegaeon_rl.frontier import plots

TABLE = (
    ("models", "models", "number"),
    ("gpus", "GPUs", "number"),
    ("ci_low", "from", "one"),
    ("ci_high", "to", "one"),
    ("share_of_bound", "of bound", "share"),
    ("saved", "saved", "share"),
    ("usd_hour", "USD/h", "two"),
    ("usd_million_tokens", "USD/M tokens", "two"),
    ("token_attainment", "on time", "share"),
    ("offered_requests_s", "req/s", "two"),
    ("backlog_slope", "backlog/s", "two"),
    ("request_lost", "lost", "share"),
    ("worst_model", "worst models", "share"),
    ("ttft_p99_s", "TTFT p99", "seconds"),
    ("stall_p99_s", "stall p99", "seconds"),
    ("fairness_jain", "Jain", "two"),
    ("gpu_busy", "busy", "share"),
    ("goodput_tokens_s", "goodput tok/s", "count"),
)


def text(value: Any, kind: str) -> str:
    if value is None or value != value:
        return "n/a" if kind != "seconds" else "never"
    if kind == "number":
        return str(value)
    if kind in ("one", "two"):
        return f"{value:,.1f}" if kind == "one" else f"{value:,.2f}"
    return cell_text(float(value), kind)


def tables(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table per pool, workload and target, with the columns that any of its rows knows."""
    found = []
    for key, group in plots.groups_of(_keyed(rows), "pool", "process", "rate", "target").items():
        used = [c for c in TABLE if any(row.get(c[0]) is not None for row in group)]
        what = f", {key[1]} {key[2]:g}/s a model" if key[1] else ""
        found.append(
            {
                "title": f"{key[0]}{what}, {percent(key[3])} of tokens on time",
                "headings": [heading for _, heading, _ in used],
                "rows": [
                    (row["policy"], [text(row.get(name), kind) for name, _, kind in used])
                    for row in group
                ],
            }
        )
    return found


def _keyed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows along GPUs have no process."""
    return [{"process": "", **row} for row in rows]


def render(
    content: Mapping[str, Any],
    answers: Sequence[str],
    notes: Sequence[str],
    section: Section | None = None,
) -> str:
    """The page of a run whose summary is `content`; `section` comes before the tables."""
    rows, curves = _keyed(content["results"]), content.get("curves", [])
    colour = plots.colours(rows)
    along = "models" if content["find"] == "models" else "gpus"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aegaeon_rl.frontier"), autoescape=True, trim_blocks=True
    )
    return environment.get_template("frontier.html.j2").render(
        style=_style(),
        answers=answers,
        notes=notes,
        bars=plots.bars(rows, colour, along),
        curves=plots.attainment(curves, colour) if curves else "",
        worst=plots.attainment(curves, colour, "worst_model") if curves else "",
        section=section,
        tables=tables(rows),
        command=content["command"],
        commit=content["commit"],
    )


def _style() -> str:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("aegaeon_rl.evaluation"))
    return environment.get_template("style.html.j2").render()


def protocol(content: Mapping[str, Any], seeds: int, warm_s: float, duration_s: float) -> list[str]:
    """What a reader must know before believing a number along models."""
    slo, profile = content["slo"], content["profile"]
    return [
        f"{seeds} arrival seeds, the same for every policy; {duration_s:g} s at the true rate"
        f" count, {warm_s:g} s before them do not; each run goes on until its last token is due.",
        f"Step times: profile {profile['name']} ({profile['kind']}). TTFT {slo['ttft_s']:g} s, TBT"
        f" {1e3 * slo['tbt_s']:g} ms. Emulated, not run on GPUs.",
        "A crossing is the most models at which the tokens of all seeds together hold the target;"
        " its interval is a bootstrap over seeds. Backlog/s: growth of open requests; above 0 the"
        " load is not held for ever. Means over seeds elsewhere.",
        "Bound: least compute and host-link time of any schedule (frontier/bounds.py).",
    ]
