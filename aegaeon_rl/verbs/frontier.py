"""`frontier`: the most models a pool holds, or the fewest GPUs that hold a trace, by policy."""

from aegaeon_rl.frontier.spec import Find
from aegaeon_rl.verbs.common import chosen_folder
from aegaeon_rl.verbs.frontier_config import Config, check_resume, chosen_policies
from aegaeon_rl.verbs.frontier_gpus import gpus_main, load_main, market_main
from aegaeon_rl.verbs.frontier_models import models_main

__all__ = ["Config", "main"]
MAINS = {
    Find.MODELS: models_main,
    Find.LOAD: load_main,
    Find.GPUS: gpus_main,
    Find.MARKET: market_main,
}


def main(config: Config) -> None:
    folder = chosen_folder("frontier", config.run)
    policies = chosen_policies(config.policies)
    check_resume(folder, config)
    MAINS[config.find](config, folder, policies)
