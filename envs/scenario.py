"""`ScenarioSpec`: which traces, loads, pools, SLOs and failures episodes are drawn from.

Plain data both ways: `ScenarioSpec.from_json(value)` takes a mapping or the name of a file in
conf/scenario, `to_json()` gives a mapping of lists, texts and numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from envs.named import named
from envs.trace_choice import TraceChoice, opened
from runtime.core import FOREVER_NS, NS, PoolSpec, SloSpec, check_within
from runtime.errors import UserError
from runtime.plain import from_plain, plain
from traces import Trace

MOST_LEVELS = 4096
FASTEST = 1000.0  # times a profile's speed, and as much slower: keeps all times in 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioSpec:
    """Episodes on role-free pools; each draws, from its seed, independently and in this order:

    - a level, by `level_weights` (none: by the traces' weights): a trace, a pool and one of
      `load_bins` parts of `load_scale`, equal in its logarithm;
    - `load`, log-uniform in that part: how many times its own rate the trace is played, times the
      pool's GPUs over those of the first pool;
    - a window of the trace, of `warm_s` (the pool runs, oldest request first) and the episode,
      whose length is uniform from `shortest_s` to `longest_s`;
    - one of `slos`; one of `mtbf_s` (mean seconds of an instance to its failure; 0: none fails;
      none given: the pool's own); `noise`, uniform in its range, in place of the pool's own; and
      `speed`, log-uniform: all step times of the profile are divided by it.

    With `routes` the pools are push pools: each arrival asks for an instance (a ROUTE). A pool with
    `interrupt_slack_s` asks for INTERRUPTs.

    A trace in memory may stand for a choice; it is played whole, and has no JSON. Raises UserError.
    """

    traces: tuple[TraceChoice | Trace, ...]
    pools: tuple[PoolSpec, ...]
    slos: tuple[SloSpec, ...] = (SloSpec(),)
    warm_s: float = 20.0
    shortest_s: float = 30.0
    longest_s: float = 90.0
    load_scale: tuple[float, float] = (1.0, 1.0)
    load_bins: int = 1
    level_weights: tuple[float, ...] = ()
    mtbf_s: tuple[float, ...] = ()
    noise: tuple[float, float] | None = None
    speed: tuple[float, float] = (1.0, 1.0)
    routes: bool = False

    @classmethod
    def from_json(cls, value: "ScenarioSpec | Mapping[str, Any] | str") -> "ScenarioSpec":
        """A name in conf/scenario, a mapping, or a specification as it is. In a mapping a trace may
        be a name, and a pool a name in conf/pool or `{pool: NAME, ...}` with what differs."""
        if isinstance(value, ScenarioSpec):
            return value
        if isinstance(value, str):
            value = named("scenario", value, "scenario")
        if not isinstance(value, Mapping):
            raise UserError(f"scenario={value!r}: expected a name or a mapping")
        data = dict(value)
        for key, entry in (("traces", _trace_data), ("pools", _pool_data)):
            if isinstance(data.get(key), list | tuple):
                data[key] = [entry(one, f"scenario.{key}[{i}]") for i, one in enumerate(data[key])]
        spec: ScenarioSpec = from_plain(cls, data, "scenario")
        return spec

    def to_json(self) -> dict[str, Any]:
        """Raises UserError for a trace that was given in memory."""
        for i, trace in enumerate(self.traces):
            if isinstance(trace, Trace):
                raise UserError(
                    f"scenario.traces[{i}]: trace {trace.name} is in memory: expected a file, a"
                    " named trace or a market"
                )
        data: dict[str, Any] = plain(self)
        return data

    def __post_init__(self) -> None:
        for name in ("traces", "pools", "slos"):
            if not getattr(self, name):
                raise UserError(f"scenario.{name}=[]: expected at least one")
        self._check_ranges()
        self._check_windows()

    def _check_ranges(self) -> None:
        check_within("scenario.warm_s", self.warm_s, 0, 1e9)
        if not 0 < self.shortest_s <= self.longest_s < inf:
            raise UserError(
                f"scenario.shortest_s={self.shortest_s}, longest_s={self.longest_s}:"
                " expected 0 < shortest_s <= longest_s"
            )
        for name in ("load_scale", "speed"):
            low, high = getattr(self, name)
            if not 0 < low <= high < inf:
                stated = list(getattr(self, name))
                raise UserError(f"scenario.{name}={stated}: expected 0 < low <= high")
        if not 1 / FASTEST <= self.speed[0] <= self.speed[1] <= FASTEST:
            raise UserError(
                f"scenario.speed={list(self.speed)}: expected {1 / FASTEST:g} to {FASTEST:g}"
            )
        if self.noise is not None and not 0 <= self.noise[0] <= self.noise[1] <= 10:
            raise UserError(f"scenario.noise={list(self.noise)}: expected 0 <= low <= high <= 10")
        for mtbf_s in self.mtbf_s:
            if not (mtbf_s == 0 or 1 <= mtbf_s <= 1e9):
                raise UserError(f"scenario.mtbf_s={mtbf_s}: expected 0 (none fails) or 1 to 1e9")
        check_within("scenario.load_bins", self.load_bins, 1, MOST_LEVELS)
        weights = self.level_weights
        is_good = all(0 <= w < inf for w in weights) and 0 < sum(weights) < inf
        if weights and (len(weights) != self.levels or not is_good):
            raise UserError(
                f"scenario.level_weights={list(weights)}: expected {self.levels} of 0 or more"
                " (traces x pools x load_bins), one of them over 0"
            )

    def _check_windows(self) -> None:
        need = (self.warm_s + self.longest_s) * self.load_scale[1] * max(map(self.size, self.pools))
        for trace in self.opened:
            if trace.requests == 0:
                raise UserError(f"trace {trace.name}: no requests: expected at least one")
            if not trace.span_s >= need:
                raise UserError(
                    f"trace {trace.name}: its {trace.span_s:.0f} s are shorter than warm_s +"
                    f" longest_s at load_scale={self.load_scale[1]:g} on the largest pool"
                    f" ({need:.0f} s)"
                )
            for slo in self.slos:
                slo.check_models(trace.models)
                _check_deadlines(trace, slo)

    @property
    def name(self) -> str:
        """Its traces, for messages."""
        return ", ".join(trace.name for trace in self.opened)

    @property
    def levels(self) -> int:
        return len(self.traces) * len(self.pools) * self.load_bins

    @property
    def opened(self) -> list[Trace]:
        return [self.trace(number) for number in range(len(self.traces))]

    def trace(self, number: int) -> Trace:
        choice = self.traces[number]
        return choice if isinstance(choice, Trace) else opened(choice)

    def size(self, pool: PoolSpec) -> float:
        """GPUs of a pool over those of the first."""
        return pool.gpus / self.pools[0].gpus

    @property
    def trace_weights(self) -> tuple[float, ...]:
        return tuple(t.weight if isinstance(t, TraceChoice) else 1.0 for t in self.traces)

    @property
    def deadline_rate(self) -> float:
        """Token deadlines a second at load 1, the mean of the traces by weight: the constant that
        scales rewards."""
        weights = self.trace_weights
        rates = [float(trace.output_tokens.sum()) / trace.span_s for trace in self.opened]
        return sum(w * rate for w, rate in zip(weights, rates, strict=True)) / sum(weights)


def _check_deadlines(trace: Trace, slo: SloSpec) -> None:
    """Raises UserError where a token may be due later than the pool's clock goes."""
    own = [slo, *(slo.models or {}).values()]
    ttft_s, tbt_s = (max(getattr(o, name) or 0.0 for o in own) for name in ("ttft_s", "tbt_s"))
    last_s, most_s = trace.span_s + ttft_s + tbt_s * int(trace.output_tokens.max()), FOREVER_NS / NS
    if not last_s < most_s:
        raise UserError(
            f"scenario.slos: ttft_s={ttft_s:g}, tbt_s={tbt_s:g}: the last token of {trace.name} is"
            f" due after {last_s:.3g} s: expected less than {most_s:.3g}"
        )


def _trace_data(entry: Any, where: str) -> Any:
    return {"name": entry} if isinstance(entry, str) else entry


def _pool_data(entry: Any, where: str) -> Any:
    if isinstance(entry, str):
        return named("pool", entry, where)
    if isinstance(entry, Mapping) and "pool" in entry:
        own = {key: value for key, value in entry.items() if key != "pool"}
        return named("pool", str(entry["pool"]), f"{where}.pool") | own
    return entry


def demo_scenario() -> ScenarioSpec:
    """The bundled market on eight H100s with the paper's three model sizes."""
    return ScenarioSpec.from_json("demo")
