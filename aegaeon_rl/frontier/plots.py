"""Figures of a frontier's page, as SVG text, from the rows of its summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from aegaeon_rl.evaluation.plots import PALETTE, STYLE, svg

Row = Mapping[str, Any]
BAND = (0.025, 0.975)


def colours(rows: Sequence[Row]) -> dict[str, str]:
    names = dict.fromkeys(row["policy"] for row in rows)
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def groups_of(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of `keys`, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def attainment(curves: Sequence[Row], colour: Mapping[str, str], column: str = "") -> str:
    """Tokens on time against models, a panel per pool and workload; the band is the range of the
    seeds, 2.5 to 97.5 %. With `column`, that metric instead, without a band."""
    panels = groups_of(curves, "pool", "process", "rate")
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(10, 0.6 + 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, min(2, len(panels)), squeeze=False).ravel()
        for ax, (key, found) in zip(axes, panels.items(), strict=False):
            for (policy,), points in groups_of(found, "policy").items():
                ranked = sorted(points, key=lambda row: row["models"])
                at = [row["models"] for row in ranked]
                value = [_percent(row[column or "token_attainment"]) for row in ranked]
                ax.plot(at, value, color=colour[policy], marker="o", markersize=3)
                if not column:
                    shares = [np.quantile(r["seed_shares"], BAND) for r in ranked]
                    low, high = 100 * np.array(shares).T
                    ax.fill_between(at, low, high, color=colour[policy], alpha=0.15, linewidth=0)
            ax.set_title(f"{key[0]}, {key[1]} {key[2]:g}/s", loc="left", fontsize=10)
            ax.set(xlabel="models", ylabel=(column or "tokens on time").replace("_", " ") + " (%)")
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        handles = [axes[0].plot([], [], color=c, label=n)[0] for n, c in colour.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
        return svg(figure)


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def bars(rows: Sequence[Row], colour: Mapping[str, str], value: str = "models") -> str:
    """The crossing of each policy with its interval, a group per question; a line is the bound."""
    panels = groups_of(rows, "pool", "process", "rate", "target")
    bound, along = f"bound_{value}", "GPUs" if value == "gpus" else value
    with matplotlib.rc_context(STYLE):
        height = 1.0 + sum(0.35 + 0.22 * len(found) for found in panels.values())
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(False, axis="y")
        at, ticks = 0.0, []
        for key, found in panels.items():
            top = at
            for row in found:
                _bar(axes, at, row, colour, value)
                at += 1
            limit = found[0].get(bound)
            if limit:
                axes.plot([limit, limit], [top - 0.5, at - 0.5], color="#000000", linewidth=1)
            ticks.append(((top + at - 1) / 2, _label(key)))
            at += 1
        axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
        axes.set(ylim=(at - 1, -1), xlabel=f"{along} at the target; the line is the capacity bound")
        handles = [axes.barh(0, 0, color=c, label=n) for n, c in colour.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
        return svg(figure)


def _bar(axes: Any, at: float, row: Row, colour: Mapping[str, str], value: str) -> None:
    size = row[value]
    if size is None:
        axes.text(0, at, " never", va="center", fontsize=8)
        return
    axes.barh(at, size, height=0.8, color=colour[row["policy"]])
    low, high = row.get("ci_low"), row.get("ci_high")
    if low is not None and high is not None and low == low:
        axes.plot([low, high], [at, at], color="#000000", linewidth=1.5)
        size = max(size, high)
    axes.text(size, at, f"  {row[value]}", va="center", fontsize=8)


def _label(key: tuple[Any, ...]) -> str:
    pool, process, rate, target = key
    what = f"{process} {rate:g}/s, " if process else ""
    return f"{pool}\n{what}{100 * target:g} %"
