"""The feature spec as data and as a table: every number of an observation is described."""

import json
import re

import numpy as np

from envs.observation import describe_observation, feature_spec
from envs.pools import observation_space
from envs.privileged import PRIVILEGED_HASH
from runtime.pool.features import HIGH, LOW, SPEC_HASH, SPEC_VERSION, C, F, I


def rows_of(table: str, title: str) -> list[list[str]]:
    """The cells of the table under a title."""
    section = table[table.index(f"\n{title}") :].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]


def test_spec_is_plain_data_with_version_hash_and_every_feature() -> None:
    spec = feature_spec()
    assert json.loads(json.dumps(spec)) == spec
    assert (spec["version"], spec["hash"]) == (SPEC_VERSION, SPEC_HASH)
    assert [len(spec[key]) for key in ("rows", "instance", "globals")] == [F, I, C]
    stated = [f for key in ("rows", "instance", "globals") for f in spec[key]]
    assert [f["low"] for f in stated] == LOW.tolist()
    assert [f["high"] for f in stated] == HIGH.tolist()
    assert all(f["name"] and f["unit"] and f["scale"] and f["meaning"] for f in stated)


def test_privileged_part_is_told_only_when_asked_for() -> None:
    assert "privileged" not in feature_spec()
    assert "privileged" not in describe_observation(4, (0.1,))
    assert feature_spec(privileged=True)["privileged"]["hash"] == PRIVILEGED_HASH
    assert PRIVILEGED_HASH in describe_observation(4, (0.1,), privileged=True)


def test_table_has_a_line_for_each_number_with_unit_scale_and_clips() -> None:
    text = describe_observation(8, (0.1, 0.4))
    for title, key in (("rows [", "rows"), ("instance [", "instance"), ("globals [", "globals")):
        heading, _, *lines = rows_of(text, title)
        assert heading == ["index", "name", "unit", "scale", "low", "high", "meaning"]
        for line, feature in zip(lines, feature_spec()[key], strict=True):
            shown = dict(zip(heading, line, strict=True))
            index = shown.pop("index")
            assert index.endswith(str(lines.index(line)))
            assert {k: float(v) if k in ("low", "high") else v for k, v in shown.items()} == feature


def test_table_states_the_sizes_of_the_space() -> None:
    space = observation_space(8, 2)
    text = describe_observation(8, (0.1, 0.4), privileged=True)
    for key in ("rows", "instance", "globals", "action_mask"):
        found = re.search(rf"^{key} \[(\d+)\]", text, re.M)
        assert found is not None
        assert int(found[1]) == int(np.prod(space[key].shape))
