"""Latency profiles: shipped ones parse and respect the hardware; bad ones name the key."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from runtime.catalog import CHECKPOINTS, GPUS
from runtime.core import ModelSpec
from runtime.emulator.profile import (
    COEFFICIENTS,
    SCHEMA,
    load_profile,
    parse_profile,
    shipped_profiles,
)
from runtime.errors import UserError
from runtime.pool.state import KNOTS


def entry(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys(COEFFICIENTS, 0.5)
    return {**plain, "source": "a test", "error_pct": ""} | changes


def table_entry(pairs: Any) -> dict[str, Any]:
    """A decode table in the place of decode_batch_s."""
    plain = entry(decode_table_s=pairs)
    del plain["decode_batch_s"]
    return plain


def document(**changes: Any) -> dict[str, Any]:
    plain = {"schema": SCHEMA, "name": "p", "gpu": "none", "kind": "measured", "source": "a test"}
    return plain | {"models": {"tiny-random": entry()}} | changes


def test_shipped_profiles_are_those_of_the_package() -> None:
    assert shipped_profiles() == (
        "a10", "a100", "h100", "h100_sosp25", "h20", "h200", "h800",
    )  # fmt: skip


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profile_parses_and_states_its_provenance(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.kind in ("derived", "measured")
    assert profile.source
    assert profile.gpu in GPUS
    assert {key.partition("@tp")[0] for key in profile.checkpoints} <= set(CHECKPOINTS)
    assert profile.costs.shape == (len(profile.checkpoints),)


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_entry_states_kind_source_and_error(name: str) -> None:
    models = json.loads((files("runtime.profiles") / f"{name}.json").read_text())["models"]
    for key, stated in models.items():
        assert stated["kind"] in ("fitted", "derived"), key
        assert stated["source"].startswith("derived: ") == (stated["kind"] == "derived"), key
        assert stated["error_pct"], key


@pytest.mark.parametrize("name", [n for n in shipped_profiles() if n != "h100_sosp25"])
def test_shipped_profile_ranges_from_the_smallest_to_what_the_gpu_holds(name: str) -> None:
    profile = load_profile(name)
    held = GPUS[profile.gpu].vram_bytes
    small = {"Qwen3-1.7B", "Qwen1.5-1.8B", "Qwen3-4B", "Qwen2.5-7B", "Qwen3-8B", "Yi-1.5-9B"}
    assert small <= set(profile.checkpoints)
    large = {"Llama-2-13B", "Qwen3-14B", "Qwen3-32B", "Qwen2.5-72B@tp4", "Mixtral-8x7B@tp2"}
    assert large <= set(profile.checkpoints) or held < 30e9
    for key in profile.checkpoints:
        name, _, tp = key.partition("@tp")
        assert CHECKPOINTS[name].weight_bytes < held * int(tp or 1)


def test_profile_is_read_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document(name="mine")))
    assert load_profile(str(path)).name == "mine"
    with pytest.raises(UserError, match=r"no such file"):
        load_profile(str(tmp_path / "absent.json"))
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(UserError, match=r"not UTF-8 text at byte 10"):
        load_profile(str(path))


def test_profile_name_that_is_unknown_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"profile=h1000: did you mean 'h100'"):
        load_profile("h1000")


def test_table_gives_each_model_the_costs_of_its_checkpoint() -> None:
    models = {"tiny-random": entry(decode_s=1.0), "Qwen3-8B": entry(decode_s=2.0)}
    profile = parse_profile(json.dumps(document(models=models)), "p")
    specs = [
        ModelSpec(name="m", checkpoint=c, weight_bytes=1, kv_token_bytes=1)
        for c in ("Qwen3-8B", "tiny-random", "Qwen3-8B")
    ]
    table = profile.table(tuple(specs))
    assert table["decode_s"].tolist() == [[2.0, 1.0, 2.0]]
    table["decode_s"] = 9.0
    assert profile.costs["decode_s"].tolist() == [1.0, 2.0]


def test_table_of_steps_replaces_the_batch_term() -> None:
    models = {"tiny-random": table_entry([[1, 0.25], [8, 0.5]]), "Qwen3-8B": entry()}
    costs = parse_profile(json.dumps(document(models=models)), "p").costs
    assert costs["knots"].tolist() == [2, 0]
    assert costs["knot_batch"][0, :2].tolist() == [1.0, 8.0]
    assert costs["knot_s"][0, :2].tolist() == [0.25, 0.5]
    assert costs["decode_batch_s"].tolist() == [0.0, 0.5]


def spec_of(checkpoint: str) -> ModelSpec:
    return ModelSpec(name="m", checkpoint=checkpoint, weight_bytes=1, kv_token_bytes=1)


def test_fits_for_several_gpus_are_keyed_apart() -> None:
    models = {"Qwen3-32B": entry(decode_s=4.0), "Qwen3-32B@tp2": entry(decode_s=2.0)}
    profile = parse_profile(json.dumps(document(models=models)), "p")
    assert profile.table((spec_of("Qwen3-32B"),))["decode_s"].tolist() == [[4.0]]
    assert profile.table((spec_of("Qwen3-32B"),), 2)["decode_s"].tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("checkpoint", "tp", "named"),
    [
        ("Qwen3-32B", 4, r"'Qwen3-32B' has no fit for pool\.tp=4: expected 1, 2"),
        ("tiny-random", 2, r"'tiny-random' has no fit for pool\.tp=2: expected 1"),
        ("Qwen3-23B", 2, r"no checkpoint 'Qwen3-23B@tp2'; did you mean 'Qwen3-32B@tp2'"),
        ("tiny-randon", 1, r"no checkpoint 'tiny-randon'; did you mean 'tiny-random'"),
    ],
)
def test_checkpoint_without_a_fit_names_the_nearest(checkpoint: str, tp: int, named: str) -> None:
    models = {"Qwen3-32B": entry(), "Qwen3-32B@tp2": entry(), "tiny-random": entry()}
    profile = parse_profile(json.dumps(document(models=models)), "p")
    with pytest.raises(UserError, match=f"profile p: {named}"):
        profile.table((spec_of(checkpoint),), tp)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in document().items() if k != key}


def with_entry(**changes: Any) -> dict[str, Any]:
    return document(models={"tiny-random": entry(**changes)})


def with_table(pairs: Any) -> str:
    return json.dumps(document(models={"tiny-random": table_entry(pairs)}))


BAD = [
    ("{", "not JSON at line 1"),
    ("[" * 100_000, "not JSON: maximum recursion depth"),
    ("9" * 5000, "not JSON: Exceeds the limit"),
    ("[]", "schema is not"),
    (json.dumps(document(name=5)), "name=5: expected a text"),
    (json.dumps(document(source=None)), "source=None: expected a text"),
    (
        json.dumps(document(models={"tiny-random": {"decod_s": 0.1}})),
        "tiny-random.decod_s: unknown key; did you mean 'decode_s'?",
    ),
    (json.dumps(document(schema="other/2")), "schema is not"),
    *[(json.dumps(without(k)), f"key '{k}'") for k in ("name", "gpu", "kind", "source", "models")],
    (json.dumps(document(models=[1])), "models=[1]"),
    (json.dumps(document(models={})), "models={}"),
    (json.dumps(document(models={"tiny-random": 3})), "tiny-random=3"),
    (json.dumps(with_entry(decode_s="fast")), "tiny-random.decode_s='fast'"),
    (json.dumps(with_entry(decode_s=None)), "tiny-random.decode_s=None"),
    (json.dumps(with_entry(decode_s=True)), "tiny-random.decode_s=True"),
    (json.dumps(with_entry(prefill_s=-1.0)), "tiny-random.prefill_s=-1.0"),
    (json.dumps(with_entry(decode_batch_s=float("nan"))), "tiny-random.decode_batch_s=nan"),
    (json.dumps(with_entry(decode_context_s=float("inf"))), "tiny-random.decode_context_s=inf"),
    (json.dumps(with_entry(prefill_s=10**400)), "tiny-random.prefill_s=1000"),
    (json.dumps(with_entry(decode_table_s=[[1, 1], [2, 2]])), "decode_table_s exclude each other"),
    (with_table(None), "decode_table_s=None: expected 2 to 12 pairs"),
    (with_table([[1, 0.5]]), "decode_table_s=[[1, 0.5]]: expected 2 to 12 pairs"),
    (with_table([[k, k] for k in range(1, KNOTS + 2)]), "expected 2 to 12 pairs"),
    (with_table([[1, 0.5], 7]), "decode_table_s[1]=7: expected a pair"),
    (with_table([[1, 0.5], [2]]), "decode_table_s[1]=[2]: expected a pair"),
    (with_table([[2, 0.5], [4, 0.5]]), "decode_table_s[0] batch=2: expected 1"),
    (with_table([[1, 0.5], [1, 0.6]]), "decode_table_s[1] batch=1: expected more than 1"),
    (with_table([[1, 0], [9, 1], [8, 2]]), "decode_table_s[2] batch=8: expected more than 9"),
    (with_table([[1, 0.5], ["2", 0.6]]), "decode_table_s[1] batch='2': expected a number"),
    (with_table([[1, 0.5], [2, None]]), "decode_table_s[1] seconds=None: expected a number"),
    (with_table([[1, float("nan")], [2, 1]]), "decode_table_s[0] seconds=nan: expected a number"),
    (with_table([[1, -0.5], [2, 1]]), "decode_table_s[0] seconds=-0.5: expected a non-negative"),
    (with_table([[1, 0.5], [2, 0.4]]), "decode_table_s[1] seconds=0.4: expected at least 0.5"),
]


@pytest.mark.parametrize(("text", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_profile_is_named_in_one_line(text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_profile(text, "mine.json")
    message = str(caught.value)
    assert message.startswith("profile mine.json: ")
    assert named in message
    assert "\n" not in message


def test_squared_token_cost_may_be_negative() -> None:
    profile = parse_profile(json.dumps(with_entry(prefill_token2_s=-1e-9)), "p")
    assert profile.costs["prefill_token2_s"][0] == -1e-9
