"""The market that SOSP'25 moved from 1,192 dedicated GPUs to 213, rebuilt from its description.

From the paper: 47 models of 1.8B to 72B, 28 on one GPU and 19 on four; H20 GPUs; skewed and bursty
demand; dedicated GPUs busy for 13 to 34 % of the time. What it does not say is assumed below,
each assumption in `ASSUMPTIONS`. An instance is one GPU or a group of four: the two cannot share
one pool here, so that two pools are sized and their GPUs added.
"""

from dataclasses import replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aegaeon_rl.frontier.bounds import demands
from aegaeon_rl.frontier.steady import OUTPUT_QUANTILES, PROMPT_QUANTILES
from runtime.catalog import assign_checkpoints
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.pool.costs import prefill_s, step_s
from traces import Trace
from traces.arrivals import ArrivalProcess
from traces.market import MarketSpec, generate

GPUS = 1192  # dedicated
PAPER_POOLED = 213
SINGLE = (
    *("Qwen1.5-1.8B", "Qwen2.5-7B", "Qwen2.5-7B", "Qwen2.5-7B", "Qwen3-8B"),
    *("Qwen3-8B", "Yi-1.5-9B", "Yi-1.5-9B", "Llama-2-13B", "Qwen3-14B"),
)
GROUPED = ("Qwen2.5-72B", "Llama-3.1-70B")
GROUP = 4  # GPUs of one instance of the larger models
BUSY = (0.13, 0.34)  # of a dedicated instance's time
SKEW = 0.8  # Zipf exponent of the number of dedicated instances
BURST, BURST_S = 4.0, 300.0  # height over the mean, mean length
FULL = 0.5  # of an instance: what one part of a model may need in bursts

ASSUMPTIONS = (
    "28 models on single GPUs take the sizes of pool h20x8 in turn (1.8B to 14B); 19 models on"
    " groups of four are 72B and 70B in turn: what the catalogue has.",
    "The 1,192 GPUs are split as evenly as one, and four, GPUs an instance allow: 320 instances of"
    " one GPU and 218 of four, 11.4 an average model.",
    "Within each half instances go to models by Zipf with exponent 0.8, at least one each.",
    "A dedicated instance is busy for 13 to 34 % of the time, spread evenly over the models; busy"
    " is the time in which it serves at least one request, as a GPU's utilisation counter counts:"
    " rate = -ln(1 - busy) / service time of a lone request, times its instances.",
    "Bursts: MMPP with bursts of 4 times the mean rate, 300 s long on average, independent of each"
    " other; no common hour of day.",
    "Lengths are those of the SOSP'25 workloads (ShareGPT), TTFT 10 s and TBT 100 ms for all.",
    "A model whose bursts (4 times its mean least work) would fill half an instance is served in as"
    " many parts as that takes, its requests in turn: a pool that pulls would else keep a hot model"
    " on one instance. Every policy gets the same parts; each loads weights of its own.",
    "Every node has all weights in host memory from the start (else a first use on a node reads"
    " 145 GB from disk, 24 s): the parts of a model share them.",
    "Two pools, one of single GPUs and one of groups of four, an instance's size being the pool's.",
)


CACHED: dict[str, Any] = {"host_weight_bytes": 10**13, "disk_bytes_s": 1e18}


class Half(NamedTuple):
    """The models of one instance size: the pool to size, their trace, their dedicated instances."""

    pool: PoolSpec
    trace: Trace
    replicas: tuple[int, ...]  # dedicated instances by model
    busy: float  # mean over dedicated GPUs, as built

    @property
    def dedicated_gpus(self) -> int:
        return self.pool.tp * sum(self.replicas)


def dealt(instances: int, models: int) -> npt.NDArray[np.int64]:
    """Instances by Zipf, at least one each, summing to `instances` (largest remainders)."""
    weight = np.arange(1, models + 1) ** -SKEW
    ideal = 1 + (instances - models) * weight / weight.sum()
    counts = np.floor(ideal).astype(np.int64)
    short = instances - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:short]] += 1
    return counts


def service_s(pool: PoolSpec, checkpoints: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Seconds that a lone request of mean lengths takes, by model."""
    prompt, output = mean_length(PROMPT_QUANTILES), mean_length(OUTPUT_QUANTILES)
    models = assign_checkpoints(checkpoints, checkpoints)
    costs = load_profile(pool.profile).table(models, pool.tp)[0]
    step = [step_s(cost, prompt + output / 2, 1.0) for cost in costs]
    first = [prefill_s(cost, int(prompt)) for cost in costs]
    return np.array(first) + output * np.array(step)


def mean_length(quantiles: tuple[int, ...]) -> float:
    levels = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
    return float(np.trapezoid(quantiles, levels))


def halves(base: PoolSpec, duration_s: float, seed: int) -> tuple[Half, Half]:
    """Single GPUs and groups of four, on nodes like `base`'s; both use its profile."""
    single, grouped = 28, 19
    each = GPUS / (single + GROUP * grouped)
    ones = round(single * each / GROUP) * GROUP
    fours = (GPUS - ones) // GROUP
    return (
        _half(base, 1, _cycled(SINGLE, single), ones, duration_s, 2 * seed),
        _half(base, GROUP, _cycled(GROUPED, grouped), fours, duration_s, 2 * seed + 1),
    )


def _cycled(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(names[i % len(names)] for i in range(count))


def _half(
    base: PoolSpec, tp: int, sizes: tuple[str, ...], instances: int, duration_s: float, seed: int
) -> Half:
    name = f"{base.name}_tp{tp}"
    pool = replace(
        base, name=name, tp=tp, instances_per_node=8 // tp, checkpoints=sizes, roles=(), **CACHED
    )
    count = len(sizes)
    replicas = dealt(instances, count)
    busy = np.random.default_rng(seed).permutation(np.linspace(*BUSY, count))
    rates = replicas * -np.log1p(-busy) / service_s(pool, sizes)
    trace = generate(
        MarketSpec(
            name=f"market1192 tp{tp}",
            models=count,
            duration_s=duration_s,
            rate_rps=float(rates.sum()),
            popularity=tuple(map(float, rates)),
            processes=((ArrivalProcess.MMPP, BURST),),
            burst_s=BURST_S,
            diurnal_depth=0.0,
            length_spread=0.0,
            prompt_quantiles=PROMPT_QUANTILES,
            output_quantiles=OUTPUT_QUANTILES,
            seed=seed,
        )
    )
    order = [int(name.rpartition("-")[2]) for name in trace.models]
    own = tuple(sizes[i] for i in order)
    mean = float((busy * replicas).sum() / replicas.sum())
    pool = replace(pool, checkpoints=own)
    work = [d.compute_s / d.span_s for d in demands(trace, pool, SloSpec(), 0.0, duration_s)]
    split = in_parts(trace, [max(1, ceil(BURST * share / FULL)) for share in work])
    by_part = tuple(own[trace.models.index(n.rpartition("/")[0])] for n in split.models)
    counts = tuple(int(replicas[i]) for i in order)
    return Half(replace(pool, checkpoints=by_part), split, counts, mean)


def in_parts(trace: Trace, parts: list[int]) -> Trace:
    """Each model's requests dealt in turn to `parts` models of its name with a number."""
    seen = [0] * len(parts)
    names: dict[str, int] = {}
    model = np.zeros(trace.requests, np.int32)
    for i, m in enumerate(trace.model.tolist()):
        name = f"{trace.models[m]}/{seen[m] % parts[m]}"
        seen[m] += 1
        model[i] = names.setdefault(name, len(names))
    return replace(trace, models=tuple(names), model=model)
