"""`aegaeon-rl VERB key=value ...`: one verb, Hydra overrides, exit code 2 for a user's mistake."""

import sys
import traceback
from importlib import import_module

import hydra
from omegaconf import DictConfig, OmegaConf

from aegaeon_rl.config import build, check_overrides, split
from aegaeon_rl.verbs import VERBS
from traces import UserError
from traces.errors import nearest

MULTIRUN = ("--multirun", "-m")
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
    """The exit code; a flag that Hydra does not know leaves by SystemExit, with its usage."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:10}{text}" for name, text in VERBS.items())
        print(USAGE.format(verbs=listed), end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    verb, (flags, overrides) = arguments[0], split(arguments[1:])
    try:
        if verb not in VERBS:
            raise UserError(f"no such verb; {nearest(verb, VERBS)}")
        check_overrides(verb, overrides, is_multirun=any(f in MULTIRUN for f in flags))
        failures = start(verb, [*flags, *overrides])
    except KeyboardInterrupt:
        print(f"aegaeon-rl {verb}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the process boundary: reported below
        failures = [error]
    for failure in failures:
        report(verb, failure)
    if not failures:
        return 0
    return 2 if all(isinstance(failure, UserError) for failure in failures) else 1


def report(verb: str, failure: Exception) -> None:
    """The user's mistake in a line; ours in full."""
    if isinstance(failure, UserError):
        print(f"aegaeon-rl {verb}: {failure}", file=sys.stderr)
    else:
        traceback.print_exception(failure)
        print(f"aegaeon-rl {verb}: a defect of aegaeon-rl, not of your input", file=sys.stderr)


def start(verb: str, arguments: list[str]) -> list[Exception]:
    """Hand over to Hydra; returns what its jobs (several with --multirun) raised."""
    module = import_module(f"aegaeon_rl.verbs.{verb}")
    failures: list[Exception] = []
    folders: set[str] = set()

    def job(config: DictConfig) -> None:
        try:
            folder = OmegaConf.select(config, "run.dir")
            if folder in folders:
                raise UserError(
                    f"run.dir={folder}: an earlier job wrote there; name what varies, as in"
                    " 'run.dir=runs/${seed}'"
                )
            folders.update([folder] if folder else [])
            module.main(build(module.Config, config))
        except Exception as error:  # returned, after the other jobs
            failures.append(error)

    sys.argv = [f"aegaeon-rl {verb}", *arguments]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=verb)(job)()
    return failures
