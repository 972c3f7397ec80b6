"""`demo`: the whole job on the bundled trace: facts, sizing, baselines, training, verdict."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from aegaeon_rl.evaluation.compare import Plan, compare
from aegaeon_rl.evaluation.report import answer, sizing_sentence
from aegaeon_rl.evaluation.sizing import can_run, pool_of_size, size
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.training.session import Job
from aegaeon_rl.verbs.common import (
    chosen_folder,
    console,
    print_comparison,
    progress,
    run_folder,
)
from aegaeon_rl.verbs.evaluate import write_comparison
from aegaeon_rl.verbs.trace import facts_lines
from aegaeon_rl.verbs.train import Config as TrainConfig
from aegaeon_rl.verbs.train import (
    check_folder,
    check_job,
    curve_section,
    judge,
    learn,
    verdict_sentence,
)
from runtime.core import PoolSpec
from runtime.errors import UserError
from runtime.protocol import Policy
from traces.statistics import survey

NEXT = """Try next:
  your own trace      aegaeon-rl trace action=describe trace.path=YOURS.parquet
  compare on it       aegaeon-rl evaluate trace.path=YOURS.parquet pool=h100x8
  learn on it         aegaeon-rl train trace.path=YOURS.parquet pool=h100x4"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(TrainConfig):
    policies: tuple[str, ...] = ("aegaeon", "serverlessllm", "fcfs", "collate", "index")
    harder: float = 1.75  # learning meets this multiple of the trace's rate, on one instance fewer

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if not 0 < self.harder < inf:
            raise UserError(f"harder={self.harder}: expected more than 0")


def main(config: Config) -> None:
    began = time.monotonic()

    def stage(title: str) -> None:
        seconds = int(time.monotonic() - began)
        console.print(f"\n[{seconds // 60}:{seconds % 60:02}] {title}")

    folder = chosen_folder("demo", config.run)
    check_folder(folder, config)
    trace, pool = config.opened_trace(), config.profiled_pool()
    policies = [make_policy(name) for name in config.policies]
    job = Job(
        parts=config.opened_parts(config.harder),
        pool=pool,
        slo=config.slo,
        spec=config.train,
        evaluation=config.evaluate,
        seed=config.seed,
        folder=folder,
    )
    check_job(job, able(policies, pool))
    stage("The trace, and what pooling saves on it")
    console.print(facts_lines(survey(trace)))
    plan = Plan(trace=trace, pool=pool, slo=config.slo, spec=config.evaluate, seed=config.seed)
    sizing = size(plan, make_policy(config.train.start, "train.start"))
    console.print(sizing_sentence(sizing))

    gpus = sizing.pooled or sizing.dedicated
    stage(f"The baselines on {gpus} GPUs")
    own_load = replace(config.evaluate, loads=(1.0,))
    pooled = replace(plan, pool=pool_of_size(pool, gpus), spec=own_load)
    runners = able(policies, pooled.pool)
    with progress("evaluate", len(runners)) as advance:
        baselines = compare(pooled, runners, progress=lambda cell: advance(cell.policy))
    print_comparison(baselines)
    console.print(answer(baselines))

    fewer = max(pool.tp, gpus - pool.tp)
    start = config.train.start
    stage(
        f"Learning where it is hard: {fewer} GPUs at {config.harder:g} times the rate, from {start}"
    )
    run_folder(folder, config)
    job = replace(job, pool=pool_of_size(pool, fewer))
    points = learn(job, resume=config.resume)

    stage("The verdict on held-out time")
    comparison, judged = judge(job, points, able(policies, job.pool))
    print_comparison(comparison)
    console.print(verdict_sentence(comparison))
    sections = [curve_section(job, points)]
    write_comparison(folder, "demo", comparison, judged, sizing, sections)
    stage("Done")
    console.print(f"{NEXT}\n\n{folder / 'report.html'}\n{folder}", soft_wrap=True)


def able(policies: Sequence[Policy], pool: PoolSpec) -> list[Policy]:
    """Those that can run on the pool: one that splits roles needs two instances."""
    return [policy for policy in policies if can_run(policy, pool)]
