"""docs/service.md: what it names is there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from aegaeon_rl.replay.spec import ReplaySpec
from runtime.service.http.keys import read_entry
from runtime.service.http.operate import OPERATIONS
from runtime.service.spec import Limits, Quota

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "service.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_links_and_pictures_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(targets) > 5
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_page_names_every_limit(name: str) -> None:
    assert name in PAGE


@pytest.mark.parametrize("path", [o.path for o in OPERATIONS if "load" not in o.path])
def test_page_names_every_route_of_operators(path: str) -> None:
    assert f"{path}`" in PAGE


def test_keys_of_the_page_are_read() -> None:
    models, keys = map(yaml.safe_load, BLOCKS)
    assert set(models) == {"smol", "code", "test"}
    read = {name: read_entry(name, entry)[1] for name, entry in keys.items()}
    assert read["ann"] == Quota(requests_per_minute=60, tokens_per_minute=100_000)
    assert read["ops"].is_admin


def test_keys_of_replay_are_those_of_its_configuration() -> None:
    known = {field.name for field in fields(ReplaySpec)}
    named = set(re.findall(r"`?replay\.(\w+)", PAGE))
    assert named - {"html"} <= known
    stated = yaml.safe_load((ROOT / "conf" / "replay.yaml").read_text())["replay"]
    assert set(stated) == known
