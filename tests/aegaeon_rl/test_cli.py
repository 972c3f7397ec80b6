"""The command line: exit codes, one line for a mistake, values that arrive as they were typed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegaeon_rl.verbs import VERBS
from runtime.errors import UserError


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that `evaluate` would work on; no work is done."""
    configs: list[Any] = []
    monkeypatch.setattr("aegaeon_rl.verbs.evaluate.main", configs.append)
    return configs


def failing(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def main(config: Any) -> None:
        raise failure

    monkeypatch.setattr("aegaeon_rl.verbs.evaluate.main", main)


@pytest.mark.parametrize("ask", ["--help", "-h", "help"])
def test_help_lists_the_verbs(cli: Any, ask: str) -> None:
    ended = cli(ask)
    assert (ended.code, ended.err) == (0, "")
    assert all(f"  {verb} " in ended.out for verb in VERBS)
    assert cli() == (2, "", ended.out)


def test_done_is_zero(cli: Any, seen: list[Any]) -> None:
    assert cli("evaluate", "seed=7", "pool=h100x4", "policies=[index]") == (0, "", "")
    (config,) = seen
    assert (config.seed, config.pool.name, config.policies) == (7, "h100x4", ("index",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evalute"],
            "no such verb; did you mean 'evaluate'? known: bench, ",
        ),
        (["evaluate", "sed=1"], "sed: unknown key; did you mean 'seed'? known: evaluate, "),
        (["evaluate", "+sed=1"], "sed: unknown key; did you mean 'seed'? known: evaluate, "),
        (["evaluate", "trace.pat=x"], "trace.pat: unknown key; did you mean 'trace.path'? known: "),
        (["evaluate", "seed"], "'seed': expected key=value"),
        (["evaluate", "seed=x"], "seed='x': expected a whole number"),
        (["evaluate", "seed=1.5"], "seed=1.5: expected a whole number"),
        (["evaluate", "seed="], "seed='': expected a whole number"),
        (["evaluate", "seed=-1"], "seed=-1: expected 0 or more"),
        (["evaluate", "seed=${nope}"], "Interpolation key 'nope' not found"),
        (["evaluate", "+seed=1"], "Could not append to config. An item is already at 'seed'."),
        (["evaluate", "~nope"], "Could not delete from config. 'nope' does not exist."),
        (["evaluate", "evaluation=default"], "Could not override 'evaluation'."),
        (["evaluate", "evaluation@evaluate=fast"], "evaluation=fast: known: default"),
        (["evaluate", "pool=h100x17"], "pool=h100x17: did you mean 'h100x16'? known: a100x8, "),
        (["evaluate", "pool=_base"], "pool=_base: known: a100x8, "),
        (["evaluate", "-m", "pool=h100x4,nope"], "pool=nope: known: a100x8, "),
        (["evaluate", "pool.dispatch=pul"], "pool.dispatch='pul': did you mean 'pull'? known: "),
        (["evaluate", "policies=index"], "policies='index': expected a list like [a,b]"),
        (["evaluate", "policies=[a"], "policies='[a': expected a list like [a,b]"),
        (
            ["evaluate", "policies=a,b"],
            "policies=a,b: several values; add --multirun to run each, or write a list as"
            " 'policies=[a,b]'",
        ),
        (["evaluate", "trace=x"], "trace='x': expected keys of TraceSource"),
        (["evaluate", "evaluate.loads=[nan]"], "evaluate.loads[0]=nan: expected a number"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    cli: Any, seen: list[Any], arguments: list[str], message: str
) -> None:
    ended = cli(*arguments)
    assert (ended.code, ended.out, seen) == (2, "", [])
    assert ended.err.startswith(f"aegaeon-rl {arguments[0]}: {message}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "value",
    [
        "workload=n80_r0.1_i1_o1",
        "/data/[1]/it's (a) {trace}.csv",
        "C:\\traces\\t=1\\",
    ],
)
def test_a_value_arrives_as_it_was_typed(cli: Any, seen: list[Any], value: str) -> None:
    assert cli("evaluate", f"trace.where={value}") == (0, "", "")
    assert seen[0].trace.where == value


def test_quoted_values_and_lists_stay_what_they_are(cli: Any, seen: list[Any]) -> None:
    cli("evaluate", "trace.where='a=b, c'", "policies=[a, 'b=c']", 'trace.name="x"')
    assert seen[0].trace.where == "a=b, c"
    assert seen[0].policies == ("a", "b=c")
    assert seen[0].trace.name == "x"


def test_help_of_a_verb_lists_its_keys(cli: Any, seen: list[Any]) -> None:
    ended = cli("evaluate", "--help")
    assert (ended.code, ended.err, seen) == (0, "", [])
    for part in ("aegaeon-rl evaluate key=value", "window_s: 600.0", "h100x4", "--multirun"):
        assert part in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "job", "seed=5"],
        ["seed=5", "--cfg", "job"],
        ["seed=5", "-c", "job", "profile=a100"],
    ],
)
def test_flags_may_stand_anywhere(cli: Any, seen: list[Any], arguments: list[str]) -> None:
    ended = cli("evaluate", *arguments)
    assert (ended.code, ended.err, seen) == (0, "", [])
    assert "\nseed: 5\n" in ended.out


def test_an_unknown_flag_is_the_users_mistake(cli: Any, seen: list[Any]) -> None:
    ended = cli("evaluate", "--fast")
    assert (ended.code, ended.out, seen) == (2, "", [])
    assert "unrecognized arguments: --fast" in ended.err


def test_a_defect_is_shown_in_full(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyError("inside"))
    ended = cli("evaluate")
    assert (ended.code, ended.out) == (1, "")
    assert "Traceback" in ended.err
    assert "KeyError: 'inside'" in ended.err
    assert ended.err.endswith("aegaeon-rl evaluate: a defect of aegaeon-rl, not of your input\n")


def test_what_a_job_refuses_is_the_users_mistake(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, UserError("trace.path=x:\nno"))
    assert cli("evaluate") == (2, "", "aegaeon-rl evaluate: trace.path=x:\\nno\n")


def test_an_interrupt_is_130(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert cli("evaluate") == (130, "", "aegaeon-rl evaluate: interrupted\n")


@pytest.mark.parametrize("flag", ["--multirun", "-m"])
def test_multirun_runs_each_value(cli: Any, seen: list[Any], flag: str) -> None:
    assert cli("evaluate", "seed=1,2", flag, "pool=h100x4,h100x8").code == 0
    jobs = [(config.seed, config.pool.name) for config in seen]
    assert jobs == [(1, "h100x4"), (1, "h100x8"), (2, "h100x4"), (2, "h100x8")]


def test_multirun_goes_on_after_a_failing_job(cli: Any, seen: list[Any]) -> None:
    ended = cli("evaluate", "--multirun", "seed=1,x,3,y")
    assert [config.seed for config in seen] == [1, 3]
    assert ended == (
        2,
        "",
        "aegaeon-rl evaluate: seed='x': expected a whole number\n"
        "aegaeon-rl evaluate: seed='y': expected a whole number\n",
    )


def test_multirun_with_a_defect_is_ours(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(config: Any) -> None:
        raise UserError("mistake") if config.seed == 1 else KeyError("defect")

    monkeypatch.setattr("aegaeon_rl.verbs.evaluate.main", main)
    ended = cli("evaluate", "--multirun", "seed=1,2")
    assert ended.code == 1
    assert "aegaeon-rl evaluate: mistake\n" in ended.err
    assert "KeyError: 'defect'" in ended.err


def test_multirun_never_writes_a_folder_twice(cli: Any, seen: list[Any]) -> None:
    ended = cli("evaluate", "--multirun", "seed=1,2", "run.dir=out")
    assert (ended.code, [config.seed for config in seen]) == (2, [1])
    assert ended.err == (
        "aegaeon-rl evaluate: run.dir=out: an earlier job wrote there; name what varies, as in"
        " 'run.dir=runs/${seed}'\n"
    )
    assert cli("evaluate", "--multirun", "seed=1,2", "run.dir=runs/${seed}").code == 0
    assert [config.run.dir for config in seen[1:]] == ["runs/1", "runs/2"]


def test_no_file_is_left_by_the_command_line_itself(
    cli: Callable[..., Any], seen: list[Any], tmp_path: Path
) -> None:
    cli("evaluate", "seed=1")
    cli("evaluate", "--multirun", "seed=1,2")
    cli("evaluate", "seed=x")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")] == ["runs/multirun.yaml"]
