"""Compile every kernel once, so that the first command after set-up starts at once.

`python -m aegaeon_rl.verbs.warm`; the cache is keyed by the kernel sources (runtime.compiled).
"""

from dataclasses import replace

import numpy as np

from aegaeon_rl.policies.registry import POLICIES, make_policy
from envs.scenario import demo_scenario
from envs.vector import PoolVecEnv
from runtime.emulator.run import run


def main() -> None:
    scenario = demo_scenario()
    for name in POLICIES:
        run(scenario.trace(0).window(0, 60), scenario.pools[0], make_policy(name), scenario.slos[0])
    pools = PoolVecEnv(replace(scenario, warm_s=1.0), 1)
    pools.reset()
    pools.step(np.zeros(1, np.int64))


if __name__ == "__main__":
    main()
