"""The page and the documents say what the summaries say."""

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from aegaeon_rl.frontier.plots import attainment, bars, colours
from aegaeon_rl.frontier.published import between, documents, load
from aegaeon_rl.frontier.report import render, tables

ROW: dict[str, Any] = {
    "policy": "index", "pool": "p", "process": "poisson", "rate": 0.1, "target": 0.9, "models": 12,
    "gpus": 4, "ci_low": 11.0, "ci_high": 13.0, "bound_models": 20.0, "share_of_bound": 0.6,
    "ttft_p99_s": None, "request_lost": 0.01, "worst_model": 0.5, "token_attainment": 0.91,
}  # fmt: skip
CURVE = [
    {**ROW, "models": n, "token_attainment": s, "seed_shares": [s - 0.01, s + 0.01]}
    for n, s in ((10, 0.95), (12, 0.91), (14, 0.8))
]
CONTENT = {
    "results": [ROW, {**ROW, "policy": "aegaeon", "ttft_p99_s": 1.0}],
    "curves": CURVE,
    "find": "models",
    "command": "c <x>",
    "commit": "abc",
}


def test_page_shows_answer_bars_curves_and_the_command() -> None:
    page = render(CONTENT, ["the answer"], ["a note"])
    assert page.count("<svg ") == 3
    for text in ("the answer", "a note", "c &lt;x&gt;", "never", "60.0 %"):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_figures_are_svg_and_label_each_policy() -> None:
    colour = colours([ROW, {**ROW, "policy": "aegaeon"}])
    for figure in (
        bars([ROW], colour),
        attainment(CURVE, colour),
        bars([{**ROW, "gpus": None}], colour, "gpus"),
    ):
        ET.fromstring(figure)
        assert "aegaeon" in figure


def test_table_leaves_out_what_no_row_knows() -> None:
    headings = tables([ROW])[0]["headings"]
    assert "models" in headings
    assert "USD/h" not in headings


def test_block_stands_between_its_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb"
    empty = text.replace("old\n", "")
    assert between(empty, "x", "new") == text.replace("old", "new")
    assert between(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end x -->\nb"


def test_documents_equal_what_the_summaries_say() -> None:
    for path, text in documents().items():
        assert path.read_text(encoding="utf-8") == text, path


@pytest.mark.parametrize("name", ["headline", "market1192"])
def test_summary_names_its_command_and_commit(name: str) -> None:
    content = load(name)
    assert content["command"].startswith("aegaeon-rl frontier")
    assert content["commit"]
