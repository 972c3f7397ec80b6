"""Figures are well-formed SVG for any data, the same for the same data, and load nothing."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.evaluation import plots
from aegaeon_rl.evaluation.bootstrap import Interval
from aegaeon_rl.evaluation.compare import Comparison, Row
from runtime.core import NONE
from runtime.timeline.bars import Bar

BARS = [
    Bar(0, 3, "weights", 0.0, 1.0),
    Bar(0, 3, "KV", 1.0, 1.5),
    Bar(0, 3, "work", 1.5, 2.0),
    Bar(1, NONE, "down", 0.5, 4.0),
]
FIGURES: dict[str, Callable[[Comparison], str]] = {
    "load": plots.attainment_by_load,
    "distributions": lambda comparison: plots.distributions([r.cell for r in comparison.rows]),
    "models": lambda comparison: plots.worst_models([r.cell for r in comparison.rows]),
    "gantt": lambda comparison: plots.gantt(
        {r.cell.policy: BARS for r in comparison.rows}, 2, 4, (0.0, 5.0)
    ),
}
HOSTILE = "runs/$a$_<script>&x^{"


def changed(comparison: Comparison, **fields: Any) -> Comparison:
    """The comparison with every cell changed alike; `name` also renames the first policy."""
    names = {comparison.baseline: fields.pop("name", comparison.baseline)}
    rows = tuple(
        Row(
            row.cell._replace(policy=names.get(row.cell.policy, row.cell.policy), **fields),
            row.difference,
        )
        for row in comparison.rows
    )
    return Comparison(
        plan=comparison.plan,
        baseline=names[comparison.baseline],
        rows=rows,
        cells=tuple(row.cell for row in rows),
    )


def parsed(text: str) -> ET.Element:
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return root


@pytest.mark.parametrize("figure", FIGURES)
def test_figure_is_an_svg_that_names_the_policies(comparison: Comparison, figure: str) -> None:
    text = FIGURES[figure](comparison)
    words = "".join(parsed(text).itertext())
    for row in comparison.rows:
        assert row.cell.policy in words
    assert "http" not in text.replace('="http://www.w3.org/', "")
    assert text == FIGURES[figure](comparison)


@pytest.mark.parametrize("figure", FIGURES)
def test_figure_takes_any_name_literally(comparison: Comparison, figure: str) -> None:
    root = parsed(FIGURES[figure](changed(comparison, name=HOSTILE)))
    assert HOSTILE in "".join(root.itertext())
    assert not any("script" in element.tag for element in root.iter())


@pytest.mark.parametrize("figure", FIGURES)
def test_figure_copes_with_nothing_served_and_no_interval(
    comparison: Comparison, figure: str
) -> None:
    sample = comparison.rows[0].cell.sample
    lost = sample.results.copy()
    lost["first_token_ns"], lost["on_time_tokens"], lost["stall_ns"] = NONE, 0, 0
    empty = sample._replace(results=lost, gaps=np.zeros_like(sample.gaps))
    nan = float("nan")
    parsed(FIGURES[figure](changed(comparison, sample=empty, attainment=Interval(0.0, nan, nan))))


def test_gantt_copes_with_idle_gpus() -> None:
    text = plots.gantt({"index": []}, 16, 0, (10.0, 70.0))
    words = "".join(parsed(text).itertext())
    assert "index: work 0.0 %, weights 0.0 %, KV 0.0 %, idle 100.0 %" in words
    assert "GPU down" not in words


def test_gantt_tells_weights_kv_and_work_apart() -> None:
    text = plots.gantt({"index": BARS}, 2, 4, (0.0, 5.0))
    words = "".join(parsed(text).itertext())
    assert "work 5.0 %, weights 10.0 %, KV 5.0 %, down 35.0 %, idle 45.0 %" in words
    for look, (width, shade, label) in plots.LOOKS.items():
        assert label in words
        drawn = re.findall(f"stroke: {shade}; stroke-width: {width:g}", text)
        assert bool(drawn) == (look in ("KV", "down")), look  # the others in their model's colour


def test_policy_keeps_its_colour_in_all_figures(comparison: Comparison) -> None:
    names = [row.cell.policy for row in comparison.rows]
    shades = plots.colours(names)
    assert len(set(shades.values())) == len(names)
    for figure in ("load", "distributions", "models"):
        text = FIGURES[figure](comparison).lower()
        assert all(f"stroke: {shade.lower()}" in text for shade in shades.values())
