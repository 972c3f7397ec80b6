"""The YAML files state the defaults of the dataclasses, so that either may be read."""

from dataclasses import fields
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from aegaeon_rl.config import build
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.tuning.spec import TuneSpec
from aegaeon_rl.verbs import bench, demo, trace, train, tune
from runtime.core import SloSpec
from traces.market import MarketSpec
from traces.source import TraceSource


def configured(module: Any, verb: str) -> Any:
    with initialize_config_module(config_module="conf", version_base="1.3"):
        return build(module.Config, compose(config_name=verb))


@pytest.mark.parametrize(
    ("module", "verb"),
    [(train, "train"), (demo, "demo"), (trace, "trace"), (bench, "bench"), (tune, "tune")],
)
def test_every_key_has_the_dataclass_default(module: Any, verb: str) -> None:
    config = configured(module, verb)
    needed = {
        name: getattr(config, name) for name in ("trace", "pool", "slo") if hasattr(config, name)
    }
    expected = module.Config(**needed)
    for field in fields(module.Config):
        if verb != "demo" or field.name not in ("train", "evaluate"):  # sized to be done soon
            assert getattr(config, field.name) == getattr(expected, field.name), field.name
    if "slo" in needed:
        assert config.slo == SloSpec()


def test_sections_have_the_dataclass_defaults() -> None:
    config = configured(train, "train")
    assert config.train == TrainSpec()
    assert config.evaluate == EvaluationSpec()
    assert config.trace == TraceSource()
    assert configured(trace, "trace").market == MarketSpec()


@pytest.mark.parametrize(
    ("group", "cls"),
    [
        ("training", TrainSpec),
        ("market", MarketSpec),
        ("evaluation", EvaluationSpec),
        ("tuning", TuneSpec),
    ],
)
def test_files_of_the_sections_name_every_key(group: str, cls: Any) -> None:
    with initialize_config_module(config_module="conf", version_base="1.3"):
        stated = compose(overrides=[f"+{group}=default"])[group]
    assert sorted(map(str, stated)) == sorted(field.name for field in fields(cls))
