"""Figures of a replay's report, as SVG text."""

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from aegaeon_rl.evaluation.metrics import model_attainment, stall_s, ttft_s
from aegaeon_rl.evaluation.plots import PALETTE, STYLE, survival, svg
from aegaeon_rl.replay.accounting import Floats, token_times_s
from aegaeon_rl.replay.load import Load
from runtime.core import NS, RequestPhase, SloSpec
from runtime.pool.state import Table

PARTS = 240  # of the time axis


def over_time(load: Load, end_s: float) -> str:
    """Requests under way, and tokens that came."""
    edges = np.linspace(0, max(end_s, 1e-3), PARTS + 1)
    sent = np.sort([o.sent_s for o in load.outcomes if o.sent_s is not None])
    ended = np.sort([o.end_s for o in load.outcomes if o.sent_s is not None])
    times = [token_times_s(load, outcome) for outcome in load.outcomes]
    tokens, _ = np.histogram(np.concatenate(times or [np.empty(0)]), edges)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        open_now, rate = figure.subplots(2, 1, sharex=True)
        level = np.searchsorted(sent, edges, "right") - np.searchsorted(ended, edges, "right")
        _stairs(open_now, edges, level[:-1].astype(float), PALETTE[0])
        _stairs(rate, edges, tokens / np.diff(edges), PALETTE[2])
        open_now.set(ylabel="requests under way", ylim=(0, None), xlim=(0, edges[-1]))
        rate.set(ylabel="tokens/s", xlabel="seconds of the replay", ylim=(0, None))
        return svg(figure)


def _stairs(axes: matplotlib.axes.Axes, edges: Floats, level: npt.NDArray[np.float64],
            colour: str) -> None:  # fmt: skip
    axes.stairs(level, edges, fill=True, color=colour, alpha=0.25)
    axes.stairs(level, edges, color=colour, linewidth=1)


def first_tokens(results: Table, slo: SloSpec) -> str:
    """Time to first token of each request against its arrival; the SLO is a line."""
    waited, at_s = ttft_s(results), results["arrival_ns"] / NS
    came = np.isfinite(waited)
    lost = ~came & (results["phase"] != RequestPhase.DONE)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots()
        shown = np.flatnonzero(came)[:: max(1, int(came.sum()) // 5000)]
        dots = np.maximum(waited[shown], 1e-4)
        axes.scatter(at_s[shown], dots, s=6, color=PALETTE[0], label="first token", linewidths=0)
        top = max(slo.ttft_s, float(waited[came].max(initial=slo.ttft_s)))
        if lost.any():
            height = np.full(int(lost.sum()), 1.6 * top)
            axes.scatter(at_s[lost], height, s=14, marker="x", color=PALETTE[1], label="never")
        axes.axhline(slo.ttft_s, color="#666666", linestyle="--", linewidth=1, label="SLO")
        axes.set(xlabel="arrival (s)", ylabel="time to first token (s)", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        figure.legend(loc="outside right center")
        return svg(figure)


def waiting(results: Table, gaps: Floats) -> str:
    """Share of requests, or gaps, beyond a time."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        panels = (
            ("time to first token", ttft_s(results)),
            ("time between tokens", gaps),
            ("longest stall of a request", stall_s(results)),
        )
        for axes, (title, values) in zip(figure.subplots(1, 3), panels, strict=True):
            survival(axes, values, PALETTE[0])
            axes.set(title=title, xlabel="seconds", xscale="log", yscale="log", ylim=(1e-4, 1.2))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
        figure.axes[0].set_ylabel("share that waits longer")
        return svg(figure)


def models(results: Table) -> str:
    """Token attainment of every model, worst first."""
    ranked = 100 * np.sort(model_attainment(results))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.bar(np.arange(1, len(ranked) + 1), ranked, color=PALETTE[0], width=0.8)
        axes.set(xlabel="models, worst first", ylabel="tokens on time (%)", ylim=(0, 101))
        return svg(figure)
