"""What one pass over a trace counts, chunk by chunk. R requests of a chunk, M models."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
DENSE = 1 << 20  # token counts below are counted in a table, others one by one


class ByModel(NamedTuple):
    """A chunk's requests, model by model and in order of arrival within each."""

    model: npt.NDArray[np.integer]  # [R]
    arrival_s: Floats
    is_first: npt.NDArray[np.bool_]  # of its model in the chunk


def by_model(model: npt.NDArray[np.int32], arrival_s: Floats, models: int) -> ByModel:
    short = model.astype(np.uint16) if models <= 1 << 16 else model  # sorted by digits
    order = np.argsort(short, kind="stable")
    ranked = model[order]
    return ByModel(ranked, arrival_s[order], np.diff(ranked, prepend=-1) != 0)


class Gaps:
    """Seconds between a model's requests: their number, sum and squares, over the whole trace and
    within windows, where a coefficient of variation needs `least` gaps."""

    CELLS = np.geomspace(1e-3, 1e4, 7 * 256 + 1)  # of coefficients within windows: 0.9 % wide

    def __init__(self, models: int, window_s: float, least: int) -> None:
        self.window_s, self.least = window_s, least
        self.last_s = np.full(models, np.nan)
        self.n = np.zeros(models, np.int64)
        self.total, self.squares = np.zeros(models), np.zeros(models)
        self.open = np.full(models, -1, np.int64)  # the window each model is in, and its sums
        self.sums = np.zeros((3, models))
        self.within = np.zeros(len(self.CELLS) + 1, np.int64)

    def add(self, rows: ByModel) -> None:
        before = np.empty_like(rows.arrival_s)
        before[1:] = rows.arrival_s[:-1]
        before[rows.is_first] = self.last_s[rows.model[rows.is_first]]
        gap = rows.arrival_s - before
        is_gap = ~np.isnan(gap)
        sums = np.array([is_gap, np.where(is_gap, gap, 0.0), np.where(is_gap, gap, 0.0) ** 2])
        models = len(self.n)
        self.n += np.bincount(rows.model, sums[0], models).astype(np.int64)
        self.total += np.bincount(rows.model, sums[1], models)
        self.squares += np.bincount(rows.model, sums[2], models)
        is_last = np.append(rows.is_first[1:], True)
        self.last_s[rows.model[is_last]] = rows.arrival_s[is_last]
        self._add_within(rows, before, sums)

    def _add_within(self, rows: ByModel, before: Floats, sums: Floats) -> None:
        window = (rows.arrival_s / self.window_s).astype(np.int64)
        is_new = rows.is_first | (np.diff(window, prepend=-1) != 0)
        starts = np.flatnonzero(is_new)
        crosses = is_new & ~(before >= window * self.window_s)
        parts = np.add.reduceat(np.where(crosses, 0.0, sums), starts, axis=1)
        model, at, is_first = rows.model[starts], window[starts], rows.is_first[starts]
        goes_on = is_first & (self.open[model] == at)
        parts[:, goes_on] += self.sums[:, model[goes_on]]
        ended = model[is_first & ~goes_on]
        self._close(self.sums[:, ended])
        is_last = np.append(is_first[1:], True)
        self._close(parts[:, ~is_last])
        self.open[model[is_last]] = at[is_last]
        self.sums[:, model[is_last]] = parts[:, is_last]

    def _close(self, sums: Floats) -> None:
        self.within += _cells(coefficients(sums, self.least), self.CELLS)

    def whole(self) -> Floats:
        """The coefficient of variation of each model [M], NaN with too few gaps."""
        return coefficients(np.array([self.n, self.total, self.squares]), self.least)

    def median_within(self) -> float:
        """Median over all windows of all models, to within a percent; NaN where no window has
        enough requests."""
        counts = self.within + _cells(coefficients(self.sums, self.least), self.CELLS)
        if counts.sum() == 0:
            return float("nan")
        cell = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
        edges = np.concatenate([[0.0], self.CELLS])
        upper = self.CELLS[min(cell, len(self.CELLS) - 1)]
        return float(0.5 * (edges[cell] + upper)) if cell else 0.0


def coefficients(sums: Floats, least: int) -> Floats:
    """Standard deviation over mean from numbers, sums and squares [3]; NaN below `least` gaps."""
    n, total, squares = sums
    found = np.full(len(total), np.nan)
    known = (n >= least) & (total > 0)
    mean = total[known] / n[known]
    found[known] = np.sqrt(np.maximum(0.0, squares[known] / n[known] - mean**2)) / mean
    return found


def _cells(values: Floats, edges: Floats) -> Ints:
    return np.bincount(np.searchsorted(edges, values[~np.isnan(values)]), minlength=len(edges) + 1)


class Windows:
    """Requests and models within consecutive windows of a width; the last one stays open."""

    def __init__(self, models: int, width_s: float) -> None:
        self.width_s = width_s
        self.open, self.counts = 0, np.zeros(models, np.int64)
        self.closed: list[tuple[Ints, Ints, Ints]] = []
        self.squares = np.zeros(models)  # of each model's requests in a closed window, summed

    def add(self, rows: ByModel) -> None:
        window = (rows.arrival_s / self.width_s).astype(np.int64)
        starts = np.flatnonzero(rows.is_first | (np.diff(window, prepend=-1) != 0))
        model, at = rows.model[starts], window[starts]
        count = np.diff(starts, append=len(window))
        last = int(at.max())
        now = at == self.open
        self.counts[model[now]] += count[now]
        if last > self.open:
            self._close_open()
            between = (at > self.open) & (at < last)
            self._close(at[between], model[between], count[between])
            self.open = last
            self.counts[model[at == last]] = count[at == last]

    def _close_open(self) -> None:
        present = np.flatnonzero(self.counts)
        self._close(np.full(len(present), self.open), present, self.counts[present])
        self.counts[:] = 0

    def _close(self, at: Ints, model: npt.NDArray[np.integer], count: Ints) -> None:
        if len(at):
            windows, of = np.unique(at, return_inverse=True)
            requests = np.bincount(of, count).astype(np.int64)
            self.closed.append((windows, requests, np.bincount(of)))
            self.squares += np.bincount(model, count.astype(float) ** 2, len(self.counts))

    def end(self) -> "WindowCounts":
        """Close the last window: no request follows."""
        self._close_open()
        columns = zip(*self.closed, strict=True)
        slot, requests, active = (np.concatenate(column) for column in columns)
        return WindowCounts(self.width_s, self.open + 1, slot, requests, active, self.squares)


class WindowCounts(NamedTuple):
    """W windows, of which those with a request are listed [L] in order."""

    width_s: float
    windows: int
    slot: Ints
    requests: Ints
    active: Ints  # models with a request
    squares: Floats  # [M] each model's squared requests, summed over windows

    def quantile(self, values: Ints, level: float) -> float:
        """Over all windows: the value that a share `level` of them does not exceed."""
        rank = int(np.ceil(level * self.windows)) - 1 - (self.windows - len(values))
        return 0.0 if rank < 0 else float(np.sort(values)[rank])


class Values:
    """How often each token count occurs: exact quantiles of any number of requests."""

    def __init__(self) -> None:
        self.table = np.zeros(0, np.int64)
        self.large: Ints = np.zeros((0, 2), np.int64)  # values from DENSE on, and their counts

    def add(self, tokens: npt.NDArray[np.int32]) -> None:
        small = tokens[tokens < DENSE]
        counts = np.bincount(small, minlength=len(self.table))
        counts[: len(self.table)] += self.table
        self.table = counts
        if len(small) < len(tokens):
            values, times = np.unique(tokens[tokens >= DENSE], return_counts=True)
            both = np.concatenate([self.large, np.stack([values, times], 1)])
            values, of = np.unique(both[:, 0], return_inverse=True)
            summed = np.bincount(of, both[:, 1]).astype(np.int64)
            self.large = np.stack([values, summed], 1)

    def ranked(self) -> tuple[Ints, Ints]:
        """The values that occur, rising, and how many requests have each or less."""
        small = np.flatnonzero(self.table)
        counts = np.concatenate([self.table[small], self.large[:, 1]])
        return np.concatenate([small, self.large[:, 0]]), np.cumsum(counts)

    def quantiles(self, levels: Floats) -> Floats:
        """As np.quantile of all of them: linear between neighbours."""
        values, ends = self.ranked()
        at = levels * (ends[-1] - 1)
        low = np.floor(at)
        below = values[np.searchsorted(ends, low, side="right")]
        above = values[np.searchsorted(ends, np.minimum(low + 1, ends[-1] - 1), side="right")]
        return below + (at - low) * (above - below)


class Raster:
    """Requests by model and time, in columns that double their width as the trace goes on."""

    def __init__(self, models: int, columns: int = 240) -> None:
        self.width_s = 1.0
        self.cells = np.zeros((models, columns), np.int64)

    def add(self, model: npt.NDArray[np.int32], arrival_s: Floats) -> None:
        models, columns = self.cells.shape
        while arrival_s[-1] >= self.width_s * columns:
            self.cells[:, : columns // 2] = self.cells.reshape(models, -1, 2).sum(2)
            self.cells[:, columns // 2 :] = 0
            self.width_s *= 2
        cell = model.astype(np.int64) * columns + (arrival_s / self.width_s).astype(np.int64)
        self.cells += np.bincount(cell, minlength=models * columns).reshape(models, columns)
