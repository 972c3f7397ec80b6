"""Figures of a trace's page, as SVG text. M models."""

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from aegaeon_rl.evaluation.plots import PALETTE, STYLE, svg
from traces.statistics import Surveyed
from traces.tallies import Values, WindowCounts

HOUR_S, DAY_S = 3600.0, 86_400.0
MOST_ROWS = 120  # models that the raster tells apart
NOTE = "#666666"


def in_units(span_s: float) -> tuple[float, str]:
    """Seconds of the unit that a time axis of this span has, and its name."""
    if span_s >= 3 * DAY_S:
        return DAY_S, "days"
    return (HOUR_S, "hours") if span_s >= 2 * HOUR_S else (60.0, "minutes")


def over_time(found: Surveyed) -> str:
    """Requests a second, and models within 17 s against what chance would give."""
    unit_s, unit = in_units(found.span_s)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        rate, active = figure.subplots(2, 1, sharex=True)
        raster = found.raster
        used = int(found.span_s / raster.width_s) + 1
        per_s = raster.cells.sum(0)[:used] / raster.width_s
        at = (np.arange(used) + 0.5) * raster.width_s / unit_s
        rate.fill_between(at, per_s, step="mid", color=PALETTE[0], alpha=0.25, linewidth=0)
        rate.step(at, per_s, where="mid", color=PALETTE[0], linewidth=1)
        rate.set(ylabel="requests/s", ylim=(0, None), xlim=(0, max(1.0, found.span_s) / unit_s))
        _active(active, found.windows, unit_s)
        facts = found.facts
        for value, colour, label in (
            (facts.models, "#000000", f"all {facts.models} models"),
            (facts.poisson_active_models, PALETTE[1], "independent Poisson models"),
        ):
            active.axhline(value, color=colour, linestyle="--", linewidth=1, label=label)
        active.set(ylabel="models within 17 s", xlabel=unit, ylim=(0, facts.models * 1.1))
        if facts.models > 5 * facts.active_models:
            active.set(yscale="log", ylim=(0.5, facts.models * 1.6))
            _logarithmic(active.yaxis)
        figure.legend(loc="outside lower center", ncols=4)
        return svg(figure)


def _logarithmic(axis: Axis, form: str = "{x:g}") -> None:
    """Plain numbers on a logarithmic axis, enough of them for a short one."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())


def _active(axes: Axes, windows: WindowCounts, unit_s: float, columns: int = 400) -> None:
    """Mean and range of the windows under each of at most `columns` stretches of time."""
    step = -(-windows.windows // columns)
    many = -(-windows.windows // step)
    group = windows.slot // step
    size = np.full(many, step)
    size[-1] = windows.windows - step * (many - 1)
    mean = np.bincount(group, windows.active, many) / size
    top, low = np.zeros(many), np.full(many, np.inf)
    np.maximum.at(top, group, windows.active)
    np.minimum.at(low, group, windows.active)
    low[np.bincount(group, minlength=many) < size] = 0
    at = (np.arange(many) + 0.5) * step * windows.width_s / unit_s
    axes.fill_between(at, np.maximum(low, 0.5), np.maximum(top, 0.5), color=PALETTE[2], alpha=0.2,
                      linewidth=0, label="least to most")  # fmt: skip
    axes.plot(at, np.maximum(mean, 0.5), color=PALETTE[2], linewidth=1.2, label="active on average")


def popularity(found: Surveyed) -> str:
    """Requests by rank, and the share that the most popular models have."""
    counts = np.sort(found.counts[found.counts > 0])[::-1]
    rank = np.arange(1, len(counts) + 1)
    slope = found.facts.zipf
    line = rank.astype(float) ** -slope
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        ranks, share = figure.subplots(1, 2)
        ranks.plot(rank, counts, ".", color=PALETTE[0], markersize=4)
        if len(counts) > 1:
            line *= counts.sum() / line.sum()
            ranks.plot(rank, line, color=PALETTE[1], label=f"Zipf, exponent {slope:.2f}")
            ranks.legend()
        ranks.set(xscale="log", yscale="log", xlabel="rank of the model", ylabel="requests")
        for axis in (ranks.xaxis, ranks.yaxis):
            _logarithmic(axis, "{x:,.0f}")
        top = np.concatenate([[0.0], rank / len(rank) * 100])
        share.plot(top, np.concatenate([[0.0], np.cumsum(counts) / counts.sum() * 100]))
        share.lines[0].set_color(PALETTE[0])
        share.axvline(10, color="#999999", linestyle=":", linewidth=1)
        share.set(xlabel="most popular models (%)", ylabel="of all requests (%)")
        share.set(xlim=(0, 100), ylim=(0, 102))
        return svg(figure)


def burstiness(found: Surveyed) -> str:
    """Each model's coefficient of variation of gaps against its rate."""
    known = ~np.isnan(found.cv)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots()
        rate = found.counts[known] / max(found.span_s, 1e-9)
        axes.plot(rate, np.maximum(found.cv[known], 1e-2), ".", color=PALETTE[3], markersize=5)
        axes.axhline(1.0, color=NOTE, linestyle="--", linewidth=1, label="Poisson")
        axes.set(xlabel="requests/s of the model", ylabel="CV of its gaps")
        if known.any():
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                _logarithmic(axis)
        axes.legend()
        return svg(figure)


def activity(found: Surveyed) -> str:
    """Which model had requests when, the most popular on top."""
    unit_s, unit = in_units(found.span_s)
    raster = found.raster
    used = int(found.span_s / raster.width_s) + 1
    order = np.argsort(-found.counts, kind="stable")[: int((found.counts > 0).sum())]
    rows = raster.cells[order, :used].astype(float)
    if len(rows) > MOST_ROWS:
        rows = np.array([part.mean(0) for part in np.array_split(rows, MOST_ROWS)])
    rows[rows == 0] = np.nan
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.grid(False)
        extent = (0, used * raster.width_s / unit_s, len(order), 0)
        top = max(2.0, float(np.nanmax(rows)))
        norm = LogNorm(min(1.0, float(np.nanmin(rows))), top)
        image = axes.imshow(
            rows, aspect="auto", interpolation="none", extent=extent, cmap="viridis_r", norm=norm
        )
        axes.set(xlabel=unit, ylabel="models, by popularity")
        figure.colorbar(
            image, ax=axes, label=f"requests in {_span(raster.width_s)}", format="{x:g}"
        )
        return svg(figure)


def _span(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def lengths(found: Surveyed) -> str:
    """Distribution of prompt and output tokens."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        body, tail = figure.subplots(1, 2)
        for values, colour, label in (
            (found.prompt, PALETTE[0], "prompt"),
            (found.output, PALETTE[1], "output"),
        ):
            tokens, share = _thinned(values)
            body.plot(tokens, 100 * share, color=colour, label=label)
            tail.plot(tokens[:-1], 100 * (1 - share[:-1]), color=colour)
        body.set(xlabel="tokens", ylabel="requests with as many or fewer (%)", xscale="log")
        tail.set(xlabel="tokens", ylabel="requests with more (%)")
        if tail.dataLim.width > 0:
            tail.set(xscale="log", yscale="log")
            for axis in (body.xaxis, tail.xaxis, tail.yaxis):
                _logarithmic(axis)
        body.legend()
        return svg(figure)


def _thinned(values: Values) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """At most some 800 points of the distribution, dense at its upper end."""
    tokens, ends = values.ranked()
    share = ends / ends[-1]
    n = len(tokens)
    keep = np.unique(np.concatenate([np.linspace(0, n - 1, 400), n - np.geomspace(1, n, 400)]))
    keep = np.unique(keep.astype(int))
    return tokens[keep].astype(float), share[keep]
