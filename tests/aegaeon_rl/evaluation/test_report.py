"""`report.html`: one file, answer first, sections in order, every name escaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from aegaeon_rl.evaluation.bootstrap import Interval
from aegaeon_rl.evaluation.compare import Comparison, Row, compare
from aegaeon_rl.evaluation.report import (
    Section,
    answer,
    assumptions,
    cell_text,
    counted,
    difference_text,
    gantt_window_s,
    render,
    turns_of,
    verdict,
    worst_table,
)
from aegaeon_rl.evaluation.sizing import Sizing
from aegaeon_rl.policies.registry import make_policy
from runtime.core import ModelSlo, SloSpec
from runtime.protocol import Policy
from traces import Trace

EVIL = "<script>alert(1)</script>"
SIZING = Sizing(
    target=0.99, policy="index", dedicated=8, dedicated_share=1.0, pooled=2, pooled_share=0.99
)
VOID = {"meta", "br", "link", "img", "hr", "input"}
NAN = float("nan")


class Page(HTMLParser):
    """Headings, texts by class, links; checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.texts: dict[str, str] = {}
        self.kind = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.links += [values[n] for n in ("src", "href", "xlink:href", "data") if n in values]
        if tag not in VOID:
            self.open.append(tag)
            self.kind = values.get("class", tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.kind] = self.texts.get(self.kind, "") + data
            if self.open[-1] == "h2":
                self.headings.append(data)


@pytest.fixture(scope="module")
def page(comparison: Comparison, policies: list[Policy]) -> str:
    return render(comparison, policies, command=f"run {EVIL}", commit="abc123", sizing=SIZING)


def with_difference(comparison: Comparison, interval: Interval) -> Comparison:
    rows = tuple(Row(r.cell, r.difference and interval) for r in comparison.rows)
    return replace(comparison, rows=rows)


def test_sections_come_in_the_order_promised(page: str) -> None:
    seen = Page(page)
    assert seen.headings == [
        "Assumptions",
        "Policies at the trace's own load",
        "Attainment against load",
        "Waiting: first token, between tokens, longest stall",
        "Worst models and fairness",
        "Which model each GPU ran",
        "Reproduce",
    ]
    order = [page.index(mark) for mark in ('class="answer"', 'class="sizing"', "<h2>Assumptions")]
    assert order == sorted(order)
    assert seen.texts["sizing"].startswith("To keep 99 % of tokens on time: dedicated 8 GPUs")
    assert seen.tags.count("svg") == 4
    assert "commit abc123" in page


def test_page_loads_nothing(page: str) -> None:
    seen = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(seen.tags)
    assert all(link.startswith("#") for link in seen.links)
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page
    namespaces = re.findall(r'xmlns(?::\w+)?="(https?://[^"]+)"', page)
    assert len(re.findall("https?:", page)) == len(namespaces)


def test_answer_holds_the_result_and_its_interval(comparison: Comparison, page: str) -> None:
    best, base = comparison.best, comparison.row("aegaeon")
    shares = [100 * row.cell.metrics["token_attainment"] for row in (best, base)]
    value, low, high = (100 * bound for bound in best.difference or ())
    assert answer(comparison) == (
        f"On market and 2 GPUs (pair), {best.cell.policy} emits {shares[0]:.1f} % of all tokens on"
        f" time, aegaeon {shares[1]:.1f} %: {value:+.1f} points [{low:+.1f}, {high:+.1f}],"
        f" {best.difference.verdict}."  # type: ignore[union-attr]
    )
    assert Page(page).texts["answer"].strip() == answer(comparison)


@pytest.mark.parametrize(
    ("interval", "points", "words"),
    [
        (Interval(0.02, 0.01, 0.03), "+2.0 points [+1.0, +3.0]", "better"),
        (Interval(-0.02, -0.03, -0.01), "-2.0 points [-3.0, -1.0]", "worse"),
        (Interval(0.02, -0.01, 0.05), "+2.0 points [-1.0, +5.0]", "no significant difference"),
        (Interval(0.02, NAN, NAN), "+2.0 points", "too little time to tell"),
    ],
)
def test_verdict_in_plain_words(
    comparison: Comparison, interval: Interval, points: str, words: str
) -> None:
    changed = with_difference(comparison, interval)
    assert (difference_text(changed.best), verdict(changed.best)) == (points, words)
    assert answer(changed).endswith(f": {points}, {words}.")
    base = changed.row("aegaeon")
    assert (difference_text(base), verdict(base)) == ("baseline", "")


def test_names_are_escaped(plan_of: Any, trace_of: Any) -> None:
    rows = [(0.5 * i, i % 2, 50, 20) for i in range(40)]
    plain = trace_of(rows, name=f"name {EVIL}")
    trace = replace(plain, models=(f"m {EVIL}", 'n"onload="x'))
    policies = [make_policy("fcfs"), make_policy("index")]
    section = Section(title=f"title {EVIL}", text=f"text {EVIL}", figure="<svg></svg>")
    text = render(
        compare(plan_of(trace, windows=0), policies),
        policies,
        command=f"run {EVIL}",
        commit="x",
        sections=[section],
    )
    seen = Page(text)
    assert "script" not in seen.tags
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert 'n"onload' not in text
    assert seen.headings.index(f"title {EVIL}") == 2


def test_page_of_one_policy_claims_no_difference(plan_of: Any, trace_of: Any) -> None:
    trace = trace_of([(0.0, 0, 10, 5)])
    policies = [make_policy("index")]
    alone = compare(plan_of(trace), policies)
    text = Page(render(alone, policies, command="c", commit="x")).texts["answer"]
    assert text.strip() == "On rows and 2 GPUs (pair), index emits 100.0 % of all tokens on time."


def test_same_comparison_gives_the_same_page(
    comparison: Comparison, policies: list[Policy], page: str
) -> None:
    again = render(comparison, policies, command=f"run {EVIL}", commit="abc123", sizing=SIZING)
    assert again == page


def test_assumptions_say_what_was_emulated(comparison: Comparison, plan_of: Any) -> None:
    text = "\n".join(assumptions(comparison))
    for part in (
        "market (synthetic)",
        "2 windows of 40 s",
        "the first 5 s of each not counted",
        "profile h100 (H100-SXM-80GB), derived, not measured",
        "2 GPUs on 1 node, 2 weight slots, 50 GB/s",
        "3 checkpoints: Llama-2-13B, Qwen2.5-7B, Yi-1.5-9B",
        "first token within 10 s, then one every 100 ms",
        "95 %, paired bootstrap over 3.5 s blocks, 200 draws",
        "Emulated, not run on GPUs",
    ):
        assert part in text, part
    whole = replace(comparison, plan=plan_of(windows=0, seeds=2))
    assert "from an empty pool, which is a transient" in "\n".join(assumptions(whole))
    assert "and 2 deals of model sizes" in "\n".join(assumptions(whole))
    own = replace(comparison, plan=plan_of(slo=SloSpec(models={"a": ModelSlo()})))
    assert "every 100 ms (1 model with an SLO of its own)" in "\n".join(assumptions(own))
    many = replace(comparison, plan=plan_of(windows=5, window_s=20.0))
    assert "paired bootstrap over 5 windows" in "\n".join(assumptions(many))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.12345, "share", "12.3 %"),
        (1.005, "seconds", "1.00 s"),
        (12345.6, "count", "12,346"),
        (float("inf"), "seconds", "never"),
        (NAN, "share", "n/a"),
    ],
)
def test_numbers_read_well(value: float, kind: str, text: str) -> None:
    assert cell_text(value, kind) == text
    assert (counted(1, "GPU"), counted(2, "GPU")) == ("1 GPU", "2 GPUs")


def test_worst_table_ranks_by_the_best_policy(
    plan_of: Any, policies: list[Policy], market: Trace
) -> None:
    comparison = compare(plan_of(slo=SloSpec(ttft_s=0.5, tbt_s=0.02)), policies)
    table = worst_table(comparison, count=3)
    results = comparison.best.cell.sample.results
    column = [row.cell.policy for row in comparison.rows].index(comparison.best.cell.policy)
    shares = {}
    for m, name in enumerate(market.models):
        own = results[results["model"] == m]
        if len(own):
            shares[name] = own["on_time_tokens"].sum() / own["due_tokens"].sum()
            for row in table:
                assert row["model"] != name or row["requests"] == len(own)
    assert len(set(shares.values())) == len(shares)
    assert [row["model"] for row in table] == sorted(shares, key=lambda n: shares[n])[:3]
    assert [row["shares"][column] for row in table] == [
        f"{100 * share:.1f} %" for share in sorted(shares.values())[:3]
    ]


def test_gantt_shows_the_first_window_after_its_warm_up(
    comparison: Comparison, policies: list[Policy]
) -> None:
    shown = turns_of(comparison, policies)
    assert gantt_window_s(comparison.plan) == (5.0, 15.0)
    assert list(shown) == ["aegaeon", "serverlessllm", "index"]
    for bars in shown.values():
        assert bars
        assert min(bar.start_s for bar in bars) >= 5.0
        assert max(bar.end_s for bar in bars) <= 15.0


def test_an_oracle_is_labelled_where_people_look(plan_of: Any) -> None:
    policies = [make_policy(name) for name in ("fcfs", "serverlessllm_plus")]
    compared = compare(plan_of(gantt_s=10.0), policies)
    assert [row.cell.policy for row in compared.rows] == ["fcfs", "serverlessllm_plus"]
    label = "serverlessllm_plus (oracle)"
    assert [row.cell.label for row in compared.rows] == ["fcfs", label]
    assert label in answer(compared)
    assert list(turns_of(compared, policies)) == ["fcfs", label]
    page = render(compared, policies, command="c", commit="0")
    assert page.count(label) > 5
    assert "serverlessllm_plus" not in page.replace(label, "").replace("report.html", "")
