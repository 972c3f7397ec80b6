"""The door for configuration: typed conversion, errors that name the key, YAML that comes back."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from aegaeon_rl.config import as_yaml, build, check_overrides, quoted, split
from aegaeon_rl.verbs.evaluate import Config
from runtime.core import Dispatch, Phases, PoolSpec, PrefetchMode
from runtime.errors import UserError


class Shade(StrEnum):
    DARK = "d"
    LIGHT = "l"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True, kw_only=True)
class Inner:
    x: float = 0.5

    def __post_init__(self) -> None:
        if self.x < 0:
            raise UserError(f"inner.x={self.x}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    need: int
    name: str = "n"
    flag: bool = False
    rate: float = 1.0
    shade: Shade = Shade.DARK
    level: Level | None = None
    many: tuple[int, ...] = ()
    pair: tuple[str, float] = ("a", 1.0)
    inner: Inner = field(default_factory=Inner)
    deep: tuple[Inner, ...] = ()


def built(**keys: Any) -> Outer:
    return build(Outer, OmegaConf.create({"need": 1} | keys))


@pytest.mark.parametrize(
    ("keys", "name", "value"),
    [
        ({"rate": 3}, "rate", 3.0),
        ({"name": 7}, "name", "7"),
        ({"name": 0.5}, "name", "0.5"),
        ({"shade": "Light"}, "shade", Shade.LIGHT),
        ({"level": "high"}, "level", Level.HIGH),
        ({"level": None}, "level", None),
        ({"many": [1, 2]}, "many", (1, 2)),
        ({"pair": ["b", 2]}, "pair", ("b", 2.0)),
        ({"inner": {"x": 2}}, "inner", Inner(x=2.0)),
        ({"inner": {}}, "inner", Inner()),
        ({"deep": [{"x": 1}, {}]}, "deep", (Inner(x=1.0), Inner())),
        ({"need": 2, "rate": "${need}"}, "rate", 2.0),
        ({"other": 1}, "need", 1),  # keys of other verbs are left alone at the top
    ],
)
def test_values_become_the_field_type(keys: dict[str, Any], name: str, value: Any) -> None:
    found = getattr(built(**keys), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"need": "x"}, "need='x': expected a whole number"),
        ({"need": 1.5}, "need=1.5: expected a whole number"),
        ({"need": 1e30}, "need=1e+30: expected a whole number"),
        ({"need": float("inf")}, "need=inf: expected a whole number"),
        ({"need": True}, "need=True: expected a whole number"),
        ({"need": None}, "need=None: expected a whole number"),
        ({"rate": "fast"}, "rate='fast': expected a number"),
        ({"rate": True}, "rate=True: expected a number"),
        ({"rate": float("nan")}, "rate=nan: expected a number"),
        ({"flag": 1}, "flag=1: expected true or false"),
        ({"name": True}, "name=True: expected a text"),
        ({"name": None}, "name=None: expected a text"),
        ({"shade": "lihgt"}, "shade='lihgt': did you mean 'light'? known: dark, light"),
        ({"shade": None}, "shade=None: known: dark, light"),
        ({"level": 3}, "level=3: known: high, low"),
        ({"many": 1}, "many=1: expected a list like [a,b]"),
        ({"many": [1, "b"]}, "many[1]='b': expected a whole number"),
        ({"many": None}, "many=None: expected a list like [a,b]"),
        ({"pair": ["a"]}, "pair=['a']: expected 2 entries"),
        ({"inner": 1}, "inner=1: expected keys of Inner"),
        ({"inner": None}, "inner=None: expected keys of Inner"),
        ({"inner": {"y": 1}}, "inner.y: unknown key; known: x"),
        ({"inner": {"x": -1}}, "inner.x=-1.0: expected 0 or more"),
        ({"deep": [{}, {"xx": 1}]}, "deep[1].xx: unknown key; did you mean 'x'? known: x"),
        ({"rate": "${nope}"}, "Interpolation key 'nope' not found full_key: rate object_type=dict"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        built(**keys)
    assert str(caught.value) == message


def test_a_whole_number_may_be_written_as_a_power_of_ten() -> None:
    need = built(need=80e9).need
    assert (need, type(need)) == (80_000_000_000, int)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"^need: missing: expected a value$"):
        build(Outer, OmegaConf.create({}))


@pytest.fixture
def evaluate() -> Iterator[Any]:
    """`evaluate`'s configuration from overrides."""
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield lambda *overrides: build(Config, compose("evaluate", overrides=list(overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["pool=h100x16_sosp25", "seed=3", "run.dir=x", "profile=h200"],
        ["trace.path=a.csv", "trace.where='day=1'", "trace.duration_s=60", "policies=[index]"],
        ["evaluate.loads=[1,2.5]", "evaluate.baseline=index", "evaluate.sizing=false"],
        ["pool.dispatch=push", "pool.prefetch=none", "pool.nodes=1", "slo.tbt_s=0.05"],
        ["slo.models={qwen/7b-x.1:{ttft_s:1,tbt_s:0.05},b:{tbt_s:1}}"],
    ],
)
def test_yaml_of_a_configuration_reads_back_as_it_was(evaluate: Any, overrides: list[str]) -> None:
    config = evaluate(*overrides)
    assert build(Config, OmegaConf.create(as_yaml(config))) == config


def test_yaml_holds_enums_by_name_and_tuples_as_lists(evaluate: Any) -> None:
    config = evaluate("pool=h100x4")
    roles = (Phases.PREFILL, Phases.DECODE, Phases.BOTH, Phases.BOTH)
    pool = replace(
        config.pool, roles=roles, dispatch=Dispatch.PUSH, prefetch=PrefetchMode.RETROACTIVE
    )
    changed = replace(config, pool=pool)
    plain = OmegaConf.to_container(OmegaConf.create(as_yaml(changed)))
    assert isinstance(plain, dict)
    assert plain["pool"]["roles"] == ["prefill", "decode", "both", "both"]
    assert (plain["pool"]["dispatch"], plain["pool"]["prefetch"]) == ("push", "retroactive")
    assert build(Config, OmegaConf.create(as_yaml(changed))) == changed
    assert isinstance(pool, PoolSpec)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("seed=1", "seed=1"),
        ("a=[1,2]", "a=[1,2]"),
        ("a={b:c}", "a={b:c}"),
        ("a=b=c", "a='b=c'"),
        ("a='b=c'", "a='b=c'"),
        ("a=b(c", "a='b(c'"),
        ("a=it's", r"a='it\'s'"),
        ("~seed", "~seed"),
        ("seed", "seed"),
    ],
)
def test_only_what_the_grammar_refuses_is_quoted(argument: str, expected: str) -> None:
    assert quoted(argument) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab =,'\"\\[]{}():#", max_size=6), min_size=2, max_size=3).map("=".join))
def test_a_quoted_value_is_read_as_it_was_typed(value: str) -> None:
    if value[0] in "'\"[{":  # quoted by hand, or a list
        return
    override = OverridesParser.create().parse_override(quoted(f"key={value}"))
    assert (override.key_or_group, override.value()) == ("key", value)


def test_flags_are_told_from_overrides() -> None:
    arguments = ["a=1", "--cfg", "job", "b=c=d", "-m", "--config-dir", "x=y"]
    assert split(arguments) == (
        ["--cfg", "job", "-m", "--config-dir", "x=y"],
        ["a=1", "b='c=d'"],
    )


@pytest.mark.parametrize(
    "override",
    [
        "trace.path=x", "trace.where='w=1'", "trace.start_s=1", "trace.duration_s=1",
        "trace.rate_scale=8", "pool=h20x8", "profile=h100", "slo.ttft_s=1", "slo.tbt_s=1",
        "slo.models={a:{tbt_s:1}}",
        "policies=[a,b]", "seed=1", "run.dir=x", "evaluate.windows=0", "pool.weight_slots=3",
        "++seed=1", "~seed", "hydra.verbose=true",
    ],
)  # fmt: skip
def test_keys_that_scripts_rely_on_are_accepted(override: str) -> None:
    check_overrides("evaluate", [override.replace("h20x8", "h200x1")], is_multirun=False)


def test_slos_of_a_model_are_written_as_a_map() -> None:
    with pytest.raises(UserError, match=r"slo\.models\.m1\.ttft_s: .* 'slo\.models=\{NAME:"):
        check_overrides("evaluate", ["slo.models.m1.ttft_s=3"], is_multirun=False)


def test_sweeps_need_multirun() -> None:
    for sweep in ("seed=1,2", "seed=range(1,4)", "pool=h100x4,h100x8", "pool=glob(h*)"):
        check_overrides("evaluate", [sweep], is_multirun=True)
        with pytest.raises(UserError, match="several values; add --multirun"):
            check_overrides("evaluate", [sweep], is_multirun=False)
