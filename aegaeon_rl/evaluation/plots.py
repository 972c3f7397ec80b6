"""Figures of a report, as SVG text. A policy keeps its colour in all of them."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from aegaeon_rl.evaluation.compare import Cell, Comparison
from aegaeon_rl.evaluation.metrics import model_attainment, stall_s, ttft_s
from runtime.slo import gap_edge_s
from runtime.timeline.bars import Bar, share_of

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
LOOKS = {  # of a Gantt bar: line width in points, colour in the legend, words for it
    "work": (6.0, "#5b8fc9", "prefill and decode"),
    "weights": (6.0, "#cfdff0", "weights load"),
    "KV": (6.0, "#000000", "KV moves in, or must leave first"),
    "down": (1.5, "#d00000", "GPU down"),
}
METADATA = ("Creator", "Date", "Format", "Type")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aegaeon-rl",
    "text.parse_math": False,  # a $ in a policy's path is a $
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def colours(policies: Sequence[str]) -> dict[str, str]:
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(policies)}


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, without XML prologue, date or other metadata."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(METADATA))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def training_curve(points: Sequence[Any], start: str) -> str:
    """Validation attainment of each checkpoint (number, decisions, attainment, low, high) against
    the line of its start; the chosen one is ringed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots()
        decisions = [point.decisions for point in points]
        value, low, high = 100 * np.array([(p.attainment, p.low, p.high) for p in points]).T
        axes.fill_between(decisions, low, high, color=PALETTE[0], alpha=0.12, linewidth=0)
        axes.plot(decisions, value, color=PALETTE[0], marker="o", markersize=4, label="learned")
        axes.axhline(value[0], color="#666666", linestyle="--", linewidth=1, label=start)
        top = int(np.argmax(value))
        ring = axes.scatter(decisions[top], value[top], s=110, label="chosen", zorder=3)
        ring.set(facecolor="none", edgecolor=PALETTE[1])
        axes.set(xlabel="decisions", ylabel="validation: tokens on time (%)")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.legend(loc="outside right center")
        return svg(figure)


def attainment_by_load(comparison: Comparison) -> str:
    """Token attainment against load, with intervals as bands."""
    names = [row.cell.label for row in comparison.rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        axes = figure.subplots()
        for name, colour in colours(names).items():
            cells = [cell for cell in comparison.cells if cell.label == name]
            loads = [cell.load for cell in cells]
            value, low, high = 100 * np.array([cell.attainment for cell in cells]).T
            axes.fill_between(loads, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(loads, value, color=colour, marker="o", markersize=4, label=name)
        axes.axvline(1.0, color="#999999", linewidth=1, linestyle=":")
        axes.set_xlabel("load (multiples of the trace's own request rate)")
        axes.set_ylabel("tokens on time (%)")
        axes.set_ylim(top=100.8)
        figure.legend(loc="outside right center")
        return svg(figure)


def distributions(rows: Sequence[Cell]) -> str:
    """Share of requests (or token gaps) beyond a time: TTFT, TBT, longest stall; log-log."""
    names = [cell.label for cell in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        first, gap, stall = figure.subplots(1, 3)
        for (_name, colour), cell in zip(colours(names).items(), rows, strict=True):
            survival(first, ttft_s(cell.sample.results), colour)
            _gap_survival(gap, cell.sample.gaps, colour)
            survival(stall, stall_s(cell.sample.results), colour)
        titles = ("time to first token", "time between tokens", "longest stall of a request")
        for axes, title in zip((first, gap, stall), titles, strict=True):
            axes.set(title=title, xlabel="seconds", xscale="log", yscale="log", ylim=(1e-4, 1.2))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
        first.set_ylabel("share that waits longer")
        handles = [first.plot([], [], color=c, label=n)[0] for n, c in colours(names).items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
        return svg(figure)


def survival(axes: Axes, values: npt.NDArray[np.float64], colour: str) -> None:
    """Share above each value; thinned to 400 points."""
    ranked = np.sort(values)
    share = 1 - np.arange(len(ranked)) / max(1, len(ranked))
    keep = np.unique(np.geomspace(1, max(1, len(ranked)), 400).astype(int))
    keep = np.unique(np.concatenate([keep - 1, len(ranked) - keep]))
    keep = keep[(keep >= 0) & (keep < len(ranked))]
    shown = keep[np.isfinite(ranked[keep])]
    axes.plot(np.maximum(ranked[shown], 1e-3), share[shown], color=colour)


def _gap_survival(axes: Axes, gaps: npt.NDArray[np.int64], colour: str) -> None:
    edges_s = np.array([gap_edge_s(cell) for cell in range(len(gaps))])
    beyond = 1 - np.cumsum(gaps) / max(1, gaps.sum())
    shown = (beyond > 0) & (beyond < 1 - 1e-9)
    axes.plot(edges_s[shown], beyond[shown], color=colour)


def worst_models(rows: Sequence[Cell]) -> str:
    """Token attainment of every model, worst first: a flat line at 100 % is fair and good."""
    names = [cell.label for cell in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots()
        for (name, colour), cell in zip(colours(names).items(), rows, strict=True):
            ranked = 100 * np.sort(model_attainment(cell.sample.results))
            axes.plot(np.arange(1, len(ranked) + 1), ranked, color=colour, label=name)
        axes.set(xlabel="models, worst first", ylabel="tokens on time (%)", ylim=(None, 101))
        figure.legend(loc="outside right center")
        return svg(figure)


def gantt(
    turns: Mapping[str, Sequence[Bar]],
    instances: int,
    models: int,
    window_s: tuple[float, float],
    tp: int = 1,
) -> str:
    """Bars of each policy on every instance, which is `tp` GPUs, with shares of their time in the
    title: a colour per model, pale while its weights load, black while KV moves before its work
    can go on."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        height = 0.9 + len(turns) * (0.5 + 0.11 * instances)
        figure = Figure(figsize=(10, height), layout="constrained")
        panels = figure.subplots(len(turns), 1, sharex=True, squeeze=False)[:, 0]
        wheel = matplotlib.colormaps["hsv"](np.linspace(0, 1, models, endpoint=False))
        wheel = wheel[np.random.default_rng(1).permutation(models)]
        wheel[:, :3] = 0.15 + 0.6 * wheel[:, :3]
        for axes, (name, bars) in zip(panels, turns.items(), strict=True):
            _draw_bars(axes, bars, wheel)
            title = f"{name}: {_shares(bars, instances * (window_s[1] - window_s[0]))}"
            axes.set(ylim=(instances - 0.4, -0.6), xlim=window_s, yticks=[])
            axes.set_title(title, loc="left")
            axes.set_ylabel(f"{instances * tp} GPUs")
        panels[-1].set_xlabel("seconds of the window")
        seen = {bar.look for bars in turns.values() for bar in bars} | {"work", "weights", "KV"}
        swatches = [Patch(color=LOOKS[k][1], label=LOOKS[k][2]) for k in LOOKS if k in seen]
        figure.legend(handles=swatches, loc="outside upper center", ncols=len(swatches))
        return svg(figure)


def _shares(bars: Sequence[Bar], gpu_s: float) -> str:
    shares = {look: share_of(bars, look, gpu_s) for look in LOOKS}
    shares["idle"] = 1 - sum(shares.values())
    if not shares["down"]:
        del shares["down"]
    return ", ".join(f"{look} {100 * abs(share):.1f} %" for look, share in shares.items())


def _draw_bars(axes: Axes, bars: Sequence[Bar], wheel: npt.NDArray[np.float64]) -> None:
    pale = [0.3 * c + 0.7 for c in wheel]
    for look, (width, plain, _) in LOOKS.items():
        shown = [bar for bar in bars if bar.look == look]
        tints: Mapping[str, Any] = {"weights": pale, "work": wheel}
        shades = [tints[look][bar.model] if look in tints else plain for bar in shown]
        lines = [((b.start_s, b.instance), (b.end_s, b.instance)) for b in shown]
        axes.add_collection(LineCollection(lines, colors=shades, linewidths=width, capstyle="butt"))
