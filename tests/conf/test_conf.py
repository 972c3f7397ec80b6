"""The YAML beside the code: the same keys, the same defaults, pools that can be run."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import conf
from aegaeon_rl.config import build
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.registry import POLICIES, make_policy
from aegaeon_rl.verbs import VERBS, trace
from aegaeon_rl.verbs.evaluate import Config
from runtime.catalog import GPUS, assign_checkpoints
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state
from traces.bundled import RECIPES
from traces.market import market_stream
from traces.source import TraceSource

FOLDER = Path(conf.__file__).parent
PHYSICS = FOLDER.parent / "docs" / "physics.md"
POOLS = sorted(p.stem for p in (FOLDER / "pool").glob("*.yaml") if not p.stem.startswith("_"))
MARKETS = sorted(p.stem for p in (FOLDER / "market").glob("*.yaml"))
REQUIRED = {"name": None, "profile": None, "checkpoints": []}


@pytest.fixture
def composed() -> Iterator[Any]:
    """A verb's configuration, as Hydra composes it."""
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield lambda verb, *overrides: compose(verb, overrides=list(overrides))


def yaml(path: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(FOLDER / path))


def plain(value: Any) -> Any:
    """A default as YAML has it."""
    if isinstance(value, Enum):
        return value.name.lower()
    if is_dataclass(value):
        return defaults(type(value))
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


def defaults(cls: Any) -> dict[str, Any]:
    """Plain defaults by field; what has none is REQUIRED."""
    found = {}
    for spec in fields(cls):
        made = spec.default_factory() if spec.default_factory is not MISSING else spec.default
        found[spec.name] = REQUIRED[spec.name] if made is MISSING else plain(made)
    return found


def test_base_pool_lists_every_field_with_its_default() -> None:
    stated = yaml("pool/_base.yaml")
    assert stated == defaults(PoolSpec)
    assert list(stated) == [spec.name for spec in fields(PoolSpec)]


def test_evaluation_lists_every_field_with_its_default() -> None:
    stated = yaml("evaluation/default.yaml")
    assert stated == defaults(EvaluationSpec)
    assert list(stated) == [spec.name for spec in fields(EvaluationSpec)]


def test_common_keys_have_the_defaults_of_their_owners() -> None:
    stated = yaml("common.yaml")
    assert stated["trace"] == defaults(TraceSource)
    assert stated["slo"] == defaults(SloSpec)


def test_evaluate_without_overrides_is_what_its_classes_say(composed: Any) -> None:
    config = build(Config, composed("evaluate"))
    assert config.trace == TraceSource()
    assert config.slo == SloSpec()
    assert config.evaluate == EvaluationSpec()
    assert (config.pool.name, config.seed, config.profile) == ("h100x16", 0, None)
    assert (config.policies, config.run.dir) == (("aegaeon", "serverlessllm", "index"), None)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_configuration_with_help(composed: Any, verb: str) -> None:
    """Keys alone; the values are the business of the verb's own tests."""
    config = composed(verb)
    assert "seed" in config
    text = (FOLDER / f"{verb}.yaml").read_text()
    assert "override hydra/help: verb" in text
    assert "override hydra/job_logging: none" in text


@pytest.mark.parametrize("name", POOLS)
def test_ready_pool_can_be_run(composed: Any, name: str) -> None:
    pool = build(Config, composed("evaluate", f"pool={name}")).pool
    assert pool.name == name
    profile = load_profile(pool.profile)
    models = tuple(f"m{i}" for i in range(len(pool.checkpoints)))
    profile.table(assign_checkpoints(models, pool.checkpoints), pool.tp)
    for policy in map(make_policy, POLICIES):
        if policy.name.startswith("aegaeon") and pool.instances < 2:
            continue  # it splits roles
        state = build_state(policy.configure(pool), models, SloSpec(), profile)
        assert len(state.instances) == pool.instances


def test_ready_pools_are_as_large_as_their_names_say(composed: Any) -> None:
    assert len(POOLS) >= 6
    for name in POOLS:
        pool = build(Config, composed("evaluate", f"pool={name}")).pool
        assert pool.gpus == int(name.partition("x")[2].partition("_")[0])


@pytest.mark.parametrize("name", POOLS)
def test_ready_pool_has_the_memory_and_port_of_its_gpu(composed: Any, name: str) -> None:
    pool = build(Config, composed("evaluate", f"pool={name}")).pool
    gpu = GPUS[load_profile(pool.profile).gpu]
    assert pool.vram_bytes == gpu.vram_bytes
    assert max(pool.h2d_bytes_s, pool.d2h_bytes_s) < gpu.pcie_bytes_s


@pytest.mark.parametrize("key", sorted({field.name for field in fields(PoolSpec)} - {"name"}))
def test_every_key_of_a_pool_is_on_the_page_of_physics(key: str) -> None:
    assert f"`{key}" in PHYSICS.read_text(encoding="utf-8")


def test_the_artifacts_pool_has_its_cost_model(composed: Any) -> None:
    """16 H100, 16 GB/s, 0.5 MB of KV a token, KV in 0.8 of what the weights leave."""
    pool = build(Config, composed("evaluate", "pool=h100x16_sosp25")).pool
    assert (pool.instances, pool.h2d_bytes_s, pool.kv_move_token_bytes) == (16, 16e9, 500_000)
    assert (pool.kv_fraction, pool.vram_bytes, pool.kv_out_free) == (0.8, 80_000_000_000, True)
    assert (pool.step_quantum_s, pool.sosp25_rules) == (0.001, True)
    sizes = [pool.checkpoints.count(f"sosp25/{n}") for n in ("Qwen2.5-7B", "Yi-1.5-9B")]
    assert (*sizes, pool.checkpoints.count("sosp25/Llama-2-13B")) == (6, 2, 2)


def test_paper_market_is_the_named_one(composed: Any) -> None:
    """`market=paper` writes a file, `trace.name=paper` streams: the same requests."""
    assert build(trace.Config, composed("trace", "market=paper")).market == RECIPES["paper"]


@pytest.mark.parametrize("name", MARKETS)
def test_ready_market_makes_requests(composed: Any, name: str) -> None:
    overrides = (f"market={name}", "market.duration_s=600")
    market = build(trace.Config, composed("trace", *overrides)).market
    assert market.name in (name, "market")
    assert next(market_stream(market).chunks()).requests > 1000
