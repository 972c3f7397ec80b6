"""A market composed from client tables, as ServeGen does: real counts per client and window.

Every request of a window is placed (ServeGen's generator drops the last), and prompt and output are
drawn apart (there from one uniform). Arrivals inside a window follow its fitted gaps, scaled so
that exactly the counted requests fall in it. One client is one model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError, nearest
from traces.formats.servegen import (
    ClientLengths,
    ClientRates,
    read_client_lengths,
    read_client_rates,
)
from traces.lengths import LengthModel, Lengths, Marginal
from traces.merge import chunk_of
from traces.sessions import Requests
from traces.stream import CHUNK_ROWS, Chunk, TraceStream, joined, pieces
from traces.trace import TraceKind
from traces.warp import DAY_S, Ticks, ticks

FINE = 1 << 20  # parts of a mean gap


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientMarket:
    """Days `first_day` on of the tables, for the clients of `pools` and `models` (POOL-cNUMBER), or
    for all where there are none. `correlation` is that of a Gaussian copula between the prompt and
    the output of a request."""

    rates: str  # a Parquet file, or a folder of ServeGen's own data
    lengths: str
    first_day: int = 0
    days: int = 1
    pools: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    correlation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("first_day", 0), ("days", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise TraceError(f"{name}={getattr(self, name)}: expected {least} or more")
        if not -1 <= self.correlation <= 1:
            raise TraceError(f"correlation={self.correlation}: expected -1 to 1")


def model_name(pool: str, client: int) -> str:
    return f"{pool}-c{client:03d}"


def client_stream(spec: ClientMarket) -> TraceStream:
    """The requests of the tables' clients. Raises TraceError for tables that are not valid, hold
    none of the pools, or no request in these days."""
    rates, lengths = read_client_rates(spec.rates), read_client_lengths(spec.lengths)
    names = np.array([model_name(p, c) for p, c in zip(rates.pool, rates.client, strict=True)])
    rows = _chosen(spec, rates, names)
    models = tuple(dict.fromkeys(names[rows].tolist()))
    number = {name: i for i, name in enumerate(models)}
    codes = np.array([number.get(name, -1) for name in names.tolist()])
    file = Path(spec.rates)
    chosen = "".join(
        f" {key}={','.join(values)}"
        for key, values in (("pools", spec.pools), ("models", spec.models))
        if values
    )
    return TraceStream(
        name=f"{file.stem}-day{spec.first_day}",
        kind=TraceKind.SEMI_SYNTHETIC,
        models=models,
        start=lambda: _chunks(spec, rates, lengths, rows, codes),
        lineage=(
            f"servegen {file.name} {Path(spec.lengths).name} first_day={spec.first_day}"
            f" days={spec.days}{chosen} correlation={spec.correlation:g} seed={spec.seed}",
        ),
        licence=rates.licence,
    )


def _chosen(
    spec: ClientMarket, rates: ClientRates, names: npt.NDArray[np.str_]
) -> npt.NDArray[np.intp]:
    """Rows of `rates` in order of time, then of the table."""
    for key, wanted, there in (("pools", spec.pools, rates.pool), ("models", spec.models, names)):
        known = set(there.tolist())
        for name in wanted:
            if name not in known:
                raise TraceError(f"{spec.rates}: {key}={name}: not there; {nearest(name, known)}")
    start_s, stop_s = spec.first_day * DAY_S, (spec.first_day + spec.days) * DAY_S
    inside = (rates.t0_s >= start_s) & (rates.t0_s < stop_s)
    if spec.pools:
        inside &= np.isin(rates.pool, spec.pools)
    if spec.models:
        inside &= np.isin(names, spec.models)
    if not inside.any():
        raise TraceError(
            f"{spec.rates}: first_day={spec.first_day}: no request in {spec.days} days from there;"
            f" the table spans {rates.t0_s.min() / DAY_S:g} to {rates.t0_s.max() / DAY_S:.3g} days"
        )
    rows = np.flatnonzero(inside)
    return rows[np.argsort(rates.t0_s[rows], kind="stable")]


def _chunks(
    spec: ClientMarket,
    rates: ClientRates,
    lengths: ClientLengths,
    rows: npt.NDArray[np.intp],
    codes: npt.NDArray[np.int64],
) -> Iterator[Chunk]:
    """A window after the other; small ones together."""
    found = _Quantiles(lengths)
    held: list[Chunk] = []
    cuts = np.flatnonzero(np.diff(rates.t0_s[rows])) + 1
    for window in np.split(rows, cuts):
        parts = [(int(codes[row]), _requests(spec, rates, found, int(row))) for row in window]
        held.append(chunk_of(sorted(parts, key=lambda part: part[0])))
        if sum(chunk.requests for chunk in held) >= CHUNK_ROWS:
            yield from pieces(joined(held))
            held = []
    if held:
        yield joined(held)


def _requests(spec: ClientMarket, rates: ClientRates, found: "_Quantiles", row: int) -> Requests:
    """One client's requests of one window."""
    pool, client = str(rates.pool[row]), int(rates.client[row])
    window = int(rates.t0_s[row] // rates.window_s)
    key = (crc32(pool.encode()), client, window)
    gaps, prompt, output = (
        np.random.Generator(np.random.PCG64(seed))
        for seed in np.random.SeedSequence(spec.seed, spawn_key=key).spawn(3)
    )
    n = int(rates.requests[row])
    start = ticks(float(rates.t0_s[row]) - spec.first_day * DAY_S)
    times = start + within(rates.dist[row], rates.shape[row], n, ticks(rates.window_s), gaps)
    marginals = found.of(pool, client, float(rates.t0_s[row]))
    drawn = Lengths(LengthModel(*marginals, spec.correlation), (prompt, output)).draw(n)
    return Requests(times, *drawn)


def within(dist: str, shape: float, n: int, length: int, rng: np.random.Generator) -> Ticks:
    """Exactly `n` arrivals in [0, length): n + 1 gaps of the distribution's shape that fill it."""
    drawn = rng.gamma(shape, 1 / shape, n + 1) if dist == "Gamma" else rng.weibull(shape, n + 1)
    longest = max(float(np.nan_to_num(drawn).max()), 1e-300)
    share = np.nan_to_num(drawn) / longest
    gaps = np.rint(share / max(float(share.mean()), 1e-9) * FINE).astype(np.int64)
    ends = np.cumsum(gaps)
    at = ends[:-1] / max(1, int(ends[-1])) * length
    return np.minimum(at.astype(np.int64), length - 1)


class _Quantiles:
    """A client's length quantiles: of its last 6 hours that have some, else of its first; a client
    without any has the median table of its pool, else of all."""

    def __init__(self, lengths: ClientLengths) -> None:
        self.lengths = lengths
        self.levels = tuple(lengths.levels.tolist())
        self.rows: dict[tuple[str, int], list[int]] = {}
        for row in np.argsort(lengths.t0_s, kind="stable").tolist():
            key = (str(lengths.pool[row]), int(lengths.client[row]))
            self.rows.setdefault(key, []).append(row)
        self.medians: dict[str, tuple[Marginal, Marginal]] = {}

    def of(self, pool: str, client: int, t0_s: float) -> tuple[Marginal, Marginal]:
        rows = self.rows.get((pool, client))
        if rows is None:
            return self._median(pool)
        at = int(np.searchsorted(self.lengths.t0_s[rows], t0_s, side="right")) - 1
        row = rows[max(0, at)]
        return self._marginals(self.lengths.prompt[row], self.lengths.output[row])

    def _median(self, pool: str) -> tuple[Marginal, Marginal]:
        if pool not in self.medians:
            mine = self.lengths.pool == pool
            chosen = mine if mine.any() else np.ones(len(mine), bool)
            tables = (self.lengths.prompt[chosen], self.lengths.output[chosen])
            self.medians[pool] = self._marginals(*(np.median(t, axis=0) for t in tables))
        return self.medians[pool]

    def _marginals(
        self, prompt: npt.NDArray[np.float64], output: npt.NDArray[np.float64]
    ) -> tuple[Marginal, Marginal]:
        return (
            Marginal(self.levels, tuple(prompt.tolist())),
            Marginal(self.levels, tuple(output.tolist())),
        )
