"""The keys of `frontier`, and what is checked before anything runs."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from aegaeon_rl.config import differing_keys
from aegaeon_rl.evaluation.compare import Plan
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.frontier.cells import FILE
from aegaeon_rl.frontier.cost import Prices
from aegaeon_rl.frontier.spec import Find, FrontierSpec
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.verbs.common import Common
from runtime.core import PoolSpec
from runtime.emulator.profile import load_profile
from runtime.errors import UserError
from runtime.protocol import Policy
from traces import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Common):
    frontier: FrontierSpec = field(default_factory=FrontierSpec)
    evaluate: EvaluationSpec = field(default_factory=EvaluationSpec)
    prices: Prices = field(default_factory=Prices)
    policies: tuple[str, ...] = ("aegaeon", "index")
    resume: bool = False

    @property
    def find(self) -> Find:
        if self.frontier.find is not None:
            return self.frontier.find
        return Find.GPUS if self.trace.path else Find.MODELS

    def pools(self) -> tuple[PoolSpec, ...]:
        """Those of `frontier.pools`, else the verb's own."""
        if not self.frontier.pools:
            return (self.profiled_pool(),)
        for pool in self.frontier.pools.values():
            load_profile(pool.profile)
        return tuple(self.frontier.pools.values())

    def plan(self) -> Plan:
        """The trace and the pool of one run. Raises UserError for what cannot be read."""
        return self.plan_of(self.opened_trace(), self.profiled_pool())

    def plan_of(self, trace: Trace, pool: PoolSpec) -> Plan:
        spec = replace(
            self.evaluate,
            target=self.frontier.all_targets[0],
            draws=self.frontier.draws,
            confidence=self.frontier.confidence,
        )
        return Plan(trace=trace, pool=pool, slo=self.slo, spec=spec, seed=self.seed)


def chosen_policies(names: tuple[str, ...]) -> list[Policy]:
    """Raises UserError for none, or one twice."""
    if not names:
        raise UserError("policies=[]: expected at least one policy")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"policies: {name!r} is listed twice: expected different policies")
    return [make_policy(name) for name in names]


def check_resume(folder: Path, config: Config) -> None:
    """Raises UserError where cells would be mixed with those of another question."""
    if not config.resume:
        if (folder / FILE).exists():
            raise UserError(
                f"run.dir={folder} holds cells of a frontier: resume=true, or another run.dir"
            )
        return
    if not (folder / FILE).exists():
        raise UserError(f"resume=true: no {FILE} in run.dir={folder}: expected a frontier run")
    changed = differing_keys(
        folder / "config.yaml", config, ("resume", "run", "policies", "prices")
    )
    free = ("frontier.target", "frontier.rate", "frontier.process", "frontier.draws",
            "frontier.confidence", "frontier.bounds", "frontier.least", "frontier.most",
            "frontier.seeds")  # fmt: skip
    if kept := [key for key in changed if not key.startswith(free)]:
        raise UserError(f"resume=true: {', '.join(kept)} differ from {folder}/config.yaml")
