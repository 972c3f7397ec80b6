"""The figures of the documentation, made from committed summaries.

`python -m aegaeon_rl.frontier.published` writes the tables between their markers in README.md and
docs/results.md, and docs/images/*.svg, from docs/results/*.json. A summary is kept there by
`keep(run_folder)`: the run's summary.json without its curves.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aegaeon_rl.evaluation.report import cell_text, percent
from aegaeon_rl.frontier import plots

ROOT = Path(__file__).resolve().parents[2]
SUMMARIES = ROOT / "docs" / "results"
Content = Mapping[str, Any]


def load(name: str) -> dict[str, Any]:
    content = json.loads((SUMMARIES / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def keep(run: Path, name: str) -> None:
    """Commit a run's summary under a name."""
    content = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    content.pop("curves", None)
    SUMMARIES.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    (SUMMARIES / f"{name}.json").write_text(text, encoding="utf-8")


def headline_lines(content: Content) -> str:
    """A row per workload and target: the baseline's and each policy's models on both pools."""
    lines = ["| workload, target | pool | policy | models (95 %) | of bound | over the baseline |"]
    lines.append("|---|---|---|---|---|---|")
    over = {_key(r): r for r in content["ratios"]}
    for row in content["results"]:
        ratio = over.get(_key(row))
        lines.append(
            f"| {row['process']} {row['rate']:g}/s, {100 * row['target']:g} % | {row['pool']} |"
            f" {row['policy']} | {row['models']} ({row['ci_low']:.0f}-{row['ci_high']:.0f}) |"
            f" {percent(row['share_of_bound'])} | {ratio_text(ratio)} |"
        )
    return "\n".join(lines)


def ratio_text(ratio: Content | None) -> str:
    if ratio is None:
        return ""
    plain = f"{ratio['ratio']:.2f} [{ratio['ci_low']:.2f}, {ratio['ci_high']:.2f}]"
    beside = "held" if ratio["sides_held"] else f"{ratio['ratio_beside']:.2f}"
    return f"{plain}; side metrics: {beside}"


def _key(row: Content) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("pool", "process", "rate", "target", "policy"))


def sides_lines(content: Content) -> str:
    """What lies beside each crossing."""
    columns = (("request_lost", "lost", "share"), ("worst_model", "worst models", "share"),
               ("ttft_p99_s", "TTFT p99", "seconds"), ("stall_p99_s", "stall p99", "seconds"),
               ("offered_requests_s", "req/s", "count"), ("gpu_busy", "busy", "share"))  # fmt: skip
    head = " | ".join(heading for _, heading, _ in columns)
    lines = [f"| pool, workload, target | policy | {head} | backlog/s |", "|---" * 9 + "|"]
    for row in content["results"]:
        cells = " | ".join(
            "never" if row[name] is None else cell_text(row[name], kind)
            for name, _, kind in columns
        )
        lines.append(
            f"| {row['pool']}, {row['process']} {row['rate']:g}/s, {100 * row['target']:g} % |"
            f" {row['policy']} | {cells} | {row['backlog_slope']:.3f} |"
        )
    return "\n".join(lines)


def market_lines(content: Content) -> str:
    lines = [
        "| policy | pooled GPUs | single + groups of four | saved | busy |",
        "|---|---|---|---|---|",
    ]
    for row in content["results"]:
        if row["gpus"] is None:
            lines.append(f"| {row['policy']} | never | | | |")
            continue
        lines.append(
            f"| {row['policy']} | {row['gpus']} | {row['gpus_single']} + {row['gpus_groups']} |"
            f" {percent(row['saved'])} | {percent(row['busy_single'])},"
            f" {percent(row['busy_groups'])} |"
        )
    lines.append(f"| capacity bound | {content['results'][0]['bound_gpus']:.0f} | | | |")
    lines.append("| the paper (production) | 213 | | 82 % | 48 % |")
    return "\n".join(lines)


PAPER = (  # summary, what the paper shows there
    ("r0.5", "0.5 requests/s a model"),
    ("x2", "prompts and outputs twice as long"),
    ("slo0.5", "strict SLO, 0.5 of it: TTFT 5 s, TBT 50 ms"),
    ("slo0.3", "strict SLO, 0.3 of it: TTFT 3 s, TBT 30 ms"),
    ("a10", "four A10s, 7B and smaller"),
    ("tp4", "70B and 72B at TP=4 on 16 H800s"),
)


def paper_lines() -> str:
    """What the paper varies, with ours; a row per policy, a part per summary that is there."""
    head = "what | policy | models at 90 % | of bound | goodput tok/s | over serverlessllm | busy"
    lines = [f"| {head} |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, what in PAPER:
        if not (SUMMARIES / f"{name}.json").exists():
            continue
        content = load(name)
        least = next(r for r in content["results"] if r["policy"] == "serverlessllm")
        for row in content["results"]:
            goodput = row["goodput_tokens_s"]
            over = row["models"] / least["models"] if least["models"] else None
            lines.append(
                f"| {what} | {row['policy']} | {row['models']} ({row['ci_low']:.0f}-"
                f"{row['ci_high']:.0f}) | {percent(row['share_of_bound'])} |"
                f" {'' if goodput is None else f'{goodput:,.0f}'} |"
                f" {'' if over is None else f'{over:.1f}'} |"
                f" {'' if row['gpu_busy'] is None else percent(row['gpu_busy'])} |"
            )
        lines.append(f"| | | `{content['command']}` | | | | |")
    return "\n".join(lines)


def readme_lines(headline: Content, market: Content) -> str:
    """The README's sentences: the quoted ratios and the market."""
    lines = [
        f"- {r['policy']} holds {r['ratio']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}] times the"
        f" models of {r['baseline']} at {r['rate']:g} requests/s a model ({r['process']}) and"
        f" {100 * r['target']:g} % of tokens on time (the smaller of two pools, {r['pool']});"
        + (
            " lost requests, worst models and TTFT p99 no worse."
            if r["sides_held"]
            else f" {r['ratio_beside']:.2f} times where lost requests, worst models and TTFT p99"
            " must be no worse too."
        )
        for r in headline["quoted"]
    ]
    found = [row for row in market["results"] if row["gpus"] is not None]
    pooled = ", ".join(f"{row['gpus']} under {row['policy']}" for row in found)
    lines.append(f"- The market of 1,192 dedicated GPUs, rebuilt: {pooled} (the paper: 213).")
    return "\n".join(lines)


def between(text: str, name: str, block: str) -> str:
    """`text` with `block` between the markers of `name`. Raises ValueError without them."""
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    first, last = text.index(start) + len(start), text.index(end)
    return f"{text[:first]}{block}\n{text[last:]}"


def documents() -> dict[Path, str]:
    """The files as they must be."""
    headline, market = load("headline"), load("market1192")
    readme, results = ROOT / "README.md", ROOT / "docs" / "results.md"
    page = results.read_text(encoding="utf-8")
    page = between(page, "headline", headline_lines(headline))
    page = between(page, "sides", sides_lines(headline))
    page = between(page, "market", market_lines(market))
    page = between(page, "paper", paper_lines())
    return {
        readme: between(
            readme.read_text(encoding="utf-8"), "frontier", readme_lines(headline, market)
        ),
        results: page,
    }


def main(arguments: Sequence[str]) -> None:
    """With RUN NAME a run's summary is kept first."""
    if arguments:
        keep(Path(arguments[0]), arguments[1])
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
    rows = load("headline")["results"]
    image = plots.bars(rows, plots.colours(rows))
    (ROOT / "docs" / "images" / "frontier.svg").write_text(image + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
