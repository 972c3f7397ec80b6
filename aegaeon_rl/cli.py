"""`aegaeon-rl VERB key=value ...`: one verb, Hydra overrides, exit code 2 for a user's mistake."""

import sys
import traceback
from importlib import import_module

import hydra
from omegaconf import DictConfig

from aegaeon_rl.config import build, check_overrides, quoted
from aegaeon_rl.verbs import VERBS
from traces import UserError
from traces.errors import nearest

USAGE = """usage: aegaeon-rl VERB [key=value ...]

verbs:
{verbs}

aegaeon-rl VERB --help lists a verb's keys; --cfg job prints its configuration;
--multirun key=a,b runs each value. Lists are quoted: 'policies=[aegaeon,index]'.
"""


def main() -> None:
    """Exit codes: 0 done, 1 our fault (with a traceback), 2 the user's mistake (one line)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:10}{text}" for name, text in VERBS.items())
        print(USAGE.format(verbs=listed), end="")
        return 0 if arguments else 2
    verb, rest = arguments[0], [quoted(argument) for argument in arguments[1:]]
    try:
        if verb not in VERBS:
            raise UserError(f"no such verb; {nearest(verb, VERBS)}")
        check_overrides(verb, rest)
        start(verb, rest)
    except UserError as error:
        print(f"aegaeon-rl {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"aegaeon-rl {verb}: interrupted", file=sys.stderr)
        return 130
    except Exception:  # the process boundary: report in full, then fail
        traceback.print_exc()
        print(f"aegaeon-rl {verb}: a defect of aegaeon-rl, not of your input", file=sys.stderr)
        return 1
    return 0


def start(verb: str, overrides: list[str]) -> None:
    """Hand over to Hydra; what a job raises comes out here, without Hydra's own report."""
    module = import_module(f"aegaeon_rl.verbs.{verb}")
    failures: list[Exception] = []

    def job(config: DictConfig) -> None:
        try:
            module.main(build(module.Config, config))
        except Exception as error:  # raised again below, after the other jobs of a multirun
            failures.append(error)

    sys.argv = [f"aegaeon-rl {verb}", *overrides]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=verb)(job)()
    for failure in failures:
        raise failure
