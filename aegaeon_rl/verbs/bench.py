"""`bench`: how fast the emulator, the environment and the engine are on this machine."""

import importlib.util
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from aegaeon_rl.evaluation.record import summary, write_rows, write_summary
from aegaeon_rl.evaluation.sizing import pool_of_size
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.verbs.common import RunSection, chosen_folder, console, run_folder
from aegaeon_rl.verbs.env_speed import bench_env
from envs.arguments import MOST
from envs.scenario import ScenarioSpec
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.run import Run, run
from runtime.emulator.stream import check_streams, replay
from runtime.engine.bench_spec import BenchSpec
from runtime.errors import UserError
from runtime.protocol import Policy
from traces import Trace
from traces.market import MarketSpec, generate, market_stream
from traces.source import TraceSource, open_stream, open_trace
from traces.stream import TraceStream


class Bench(StrEnum):
    EMULATOR = "emulator"
    ENV = "env"
    ENGINE = "engine"


class Workload(StrEnum):
    MARKET = "market"  # generated: `models` at `rate_rps` for `duration_s`
    TRACE = "trace"  # the keys of `trace`, played `repeat` times, each `period_s` after the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is emulated on `gpus`. With `stream` the requests come chunk by chunk, so that making
    or reading them counts; without it they lie in memory before the clock starts."""

    pool: PoolSpec
    slo: SloSpec
    trace: TraceSource
    workload: Workload = Workload.MARKET
    repeat: int = 1
    period_s: float | None = None
    stream: bool = False
    runs: int = 1
    bench: Bench = Bench.EMULATOR
    engine: BenchSpec = field(default_factory=BenchSpec)
    policies: tuple[str, ...] = ("index", "aegaeon")
    gpus: int = 16
    models: int = 80
    rate_rps: float = 8.0
    duration_s: float = 3600.0
    threads: int = 1
    pools: int = 256
    decisions: int = 1_000_000
    train_decisions: int = 200_000
    peers: bool = True
    seed: int = 0
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        counts = ("gpus", "models", "threads", "pools", "decisions", "train_decisions")
        for name in (*counts, "repeat", "runs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.pools > MOST:
            raise UserError(f"pools={self.pools}: expected at most {MOST}")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: expected 0 or more")
        if self.stream and (self.repeat > 1 or self.threads > 1 or self.bench is Bench.ENV):
            raise UserError("stream=true: expected repeat=1, threads=1 and bench=emulator")


def main(config: Config) -> None:
    pool = pool_of_size(config.pool, config.gpus)
    folder = chosen_folder("bench", config.run)
    trace = None if config.stream else workload(config)
    if trace is not None:
        config.slo.check_models(trace.models)
    if config.bench is Bench.ENGINE:
        run_folder(folder, config)
        rows = [bench_engine(config)]
    elif config.bench is Bench.ENV and trace is not None:
        scenario = ScenarioSpec(traces=(trace,), pools=(pool,), slos=(config.slo,))
        run_folder(folder, config)
        row = bench_env(
            scenario,
            folder,
            pools=config.pools,
            threads=config.threads,
            decisions=config.decisions,
            train_decisions=config.train_decisions,
            peers=config.peers,
            seed=config.seed,
        )
        rows = [row]
    else:
        policies = [make_policy(name) for name in config.policies]
        for policy in policies:
            policy.configure(pool)  # refuses a pool it cannot run
            if config.stream:
                check_streams(pool, policy)
        run_folder(folder, config)
        rows = [bench_policy(config, trace, pool, policy) for policy in policies]
    write_rows(folder / "results.parquet", rows)
    content = summary("bench", config.seed, trace, pool, config.slo, rows)
    write_summary(folder / "summary.json", {**content, "bench": str(config.bench)})
    for row in rows:
        console.print("  ".join(f"{key}={_short(value)}" for key, value in row.items()))
    console.print(folder, soft_wrap=True)


def bench_engine(config: Config) -> dict[str, Any]:
    """The real engine on `engine.device`; needs the extra `engine`."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "bench=engine needs transformers: expected `pip install aegaeon-rl[engine]`"
        )
    from runtime.engine.bench import measure

    return {"policy": None, **measure(config.engine)}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@dataclass(slots=True)
class Work:
    """What was emulated while the clock ran."""

    requests: int = 0
    tokens: int = 0
    due_tokens: int = 0
    on_time_tokens: int = 0
    decisions: int = 0

    def speeds(self, seconds: float) -> dict[str, Any]:
        return {
            "requests_s": round(self.requests / seconds),
            "tokens_s": round(self.tokens / seconds),
            "decisions_s": round(self.decisions / seconds),
            "requests": self.requests,
            "seconds": seconds,
            "token_attainment": self.on_time_tokens / max(1, self.due_tokens),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def market(config: Config) -> MarketSpec:
    return MarketSpec(
        name="bench",
        models=config.models,
        duration_s=config.duration_s,
        rate_rps=config.rate_rps,
        seed=config.seed,
    )


def workload(config: Config) -> Trace:
    """In memory, whole."""
    if config.workload is Workload.MARKET:
        return generate(market(config))
    trace = open_trace(config.trace)
    return trace if config.repeat == 1 else trace.repeat(config.repeat, config.period_s)


def bench_policy(
    config: Config, trace: Trace | None, pool: PoolSpec, policy: Policy
) -> dict[str, Any]:
    if trace is None:
        return bench_stream(config, pool, policy)
    return bench_emulator(config, trace, pool, policy)


def bench_emulator(config: Config, trace: Trace, pool: PoolSpec, policy: Policy) -> dict[str, Any]:
    """Whole runs of the trace, one per thread at once, the fastest of `runs`; the first, with
    compilation, apart."""

    def once() -> Run:
        return run(trace, pool, policy, config.slo)

    first_s, seconds = timed(once), np.inf
    with ThreadPoolExecutor(max_workers=config.threads) as threads:
        for _ in range(config.runs):
            began = time.perf_counter()
            done = list(threads.map(lambda _: once(), range(config.threads)))
            seconds = min(seconds, time.perf_counter() - began)
    work = Work(
        requests=trace.requests * config.threads,
        tokens=sum(int(r.results["emitted_tokens"].sum()) for r in done),
        due_tokens=sum(int(r.results["due_tokens"].sum()) for r in done),
        on_time_tokens=sum(int(r.results["on_time_tokens"].sum()) for r in done),
        decisions=sum(r.decisions for r in done),
    )
    speeds = work.speeds(seconds)
    compile_s = max(0.0, first_s - seconds / config.threads)
    size = {"threads": config.threads, "gpus": pool.gpus, "models": len(trace.models)}
    return {"policy": policy.name, **speeds, "compile_s": compile_s, **size}


def bench_stream(config: Config, pool: PoolSpec, policy: Policy) -> dict[str, Any]:
    """One pass over a stream, with reading or making it; compilation apart."""
    is_market = config.workload is Workload.MARKET
    stream = market_stream(market(config)) if is_market else open_stream(config.trace)
    compile_s = timed(lambda: list(replay(first_of(stream), pool, policy, config.slo)))
    work, began = Work(), time.perf_counter()
    done = replay(stream, pool, policy, config.slo)
    for results in done:
        work.requests += len(results)
        work.tokens += int(results["emitted_tokens"].sum())
        work.due_tokens += int(results["due_tokens"].sum())
        work.on_time_tokens += int(results["on_time_tokens"].sum())
    work.decisions = int(done.sim.control["decisions"][0])
    speeds = work.speeds(time.perf_counter() - began)
    size = {"threads": 1, "gpus": pool.gpus, "models": len(stream.models)}
    return {"policy": policy.name, **speeds, "compile_s": compile_s, **size}


def first_of(stream: TraceStream) -> TraceStream:
    """Its first request."""
    return replace(stream, start=lambda: iter([next(stream.chunks()).rows(slice(1))]))


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
