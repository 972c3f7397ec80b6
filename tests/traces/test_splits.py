"""Splits: no client and no day in two parts, no file in two splits, nothing tuned on SOSP'25."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces import TraceKind, UserError
from traces.client_market import model_name
from traces.formats.servegen import read_client_rates
from traces.source import TraceSource, open_stream
from traces.splits import Part, load_split, parsed, runs, split_names, split_of
from traces.stream import Chunk, TraceStream, collect

DATA = (Path(__file__).parents[2] / "../shared/data/traces").resolve()
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"development data not at {DATA}")
GOOD: dict[str, Any] = {
    "files": {"log": 5},
    "clients": {"modulo": 3, "train": [0], "validation": [1], "test": [2]},
    "days": {"train": [5, 6, 8], "validation": [7], "test": [9]},
}


def clients(days: int = 5) -> TraceStream:
    """Four clients, each with a request every six hours."""

    def start() -> Iterator[Chunk]:
        times = np.repeat(np.arange(days * 4) * 21_600.0, 4)
        ones = np.ones(len(times), np.int32)
        model = np.tile(np.arange(4, dtype=np.int32), days * 4)
        yield Chunk(times, model, ones, ones, np.zeros(len(times), np.int8))

    models = tuple(f"m-c{number:03d}" for number in range(4))
    return TraceStream(name="log", kind=TraceKind.LOG, models=models, start=start)


@pytest.mark.parametrize("name", split_names())
def test_split_loads_and_knows_its_files(name: str) -> None:
    split = load_split(name)
    assert split.about
    assert split.files
    assert all(split_of(file) == split for file in split.files)


def test_no_file_is_in_two_splits() -> None:
    files = [file for name in split_names() for file in load_split(name).files]
    assert len(files) == len(set(files)) >= 6


def test_sosp_workloads_and_other_services_are_for_tests_alone() -> None:
    for file in ("aegaeon_sosp25_workloads", "azure_llm_2023_conv", "mooncake_synthetic"):
        split = split_of(file)
        assert split is not None
        assert split.only is Part.TEST


def test_user_files_have_no_split() -> None:
    assert split_of("my_log") is None


def test_part_takes_its_clients_on_its_days() -> None:
    split = parsed("own", GOOD)
    first, second = split.select(clients(), Part.TRAIN, "log")
    assert [collect(part).models for part in (first, second)] == [("m-c000", "m-c003")] * 2
    assert collect(first).requests == 2 * 2 * 4  # days 5 and 6: the file's first two
    assert collect(second).requests == 2 * 4
    assert second.lineage == ("split own train days 8 8",)
    (validation,) = split.select(clients(), Part.VALIDATION, "log")
    assert collect(validation).models == ("m-c001",)
    assert collect(validation).arrival_s.tolist() == [0.0, 21_600.0, 43_200.0, 64_800.0]


def test_part_without_a_day_or_a_client_is_empty() -> None:
    split = parsed("own", GOOD)
    assert split.select(clients(days=2), Part.TEST, "log") == []
    no_test = parsed("own", GOOD | {"clients": {"modulo": 5, "train": [0, 1, 2, 3, 4]}})
    assert no_test.select(clients(), Part.TEST, "log") == []


def test_whole_file_is_in_its_only_part() -> None:
    split = parsed("own", {"files": {"log": 0}, "only": "test"})
    stream = clients()
    assert split.select(stream, Part.TEST, "log") == [stream]
    assert split.select(stream, Part.TRAIN, "log") == []


def test_runs_are_days_in_a_row() -> None:
    assert runs([8, 5, 6, 9, 2]) == [(2, 2), (5, 6), (8, 9)]
    assert runs([]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": {"train": [1, 2], "test": [2]}}, "days: 2 is in train and test"),
        ({"clients": {"modulo": 2, "train": [0, 1], "test": [1]}}, "clients: 1 is in train and"),
        ({"clients": {"modulo": 3, "train": [0], "test": [1]}}, "clients: 2 is in no part"),
        ({"days": {"tran": [1]}}, "part 'tran'; did you mean 'train'?"),
        ({"only": "test"}, "expected either only, or clients and days"),
        ({"days": None}, "expected either only, or clients and days"),
        ({"file": {}}, "file: unknown key; did you mean 'files'?"),
    ],
)
def test_split_that_overlaps_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed("own", GOOD | change)
    assert str(caught.value).startswith(f"split own: {message}")


def test_mistakes_of_use_are_named() -> None:
    split = parsed("own", GOOD)
    with pytest.raises(UserError, match=r"^split own: no file 'lag'; did you mean 'log'"):
        split.select(clients(), Part.TRAIN, "lag")
    with pytest.raises(UserError, match=r"^split own: model 'gpt': expected a client"):
        split.part_of_model("gpt")
    with pytest.raises(UserError, match=r"^split=servgen: did you mean 'servegen'"):
        load_split("servgen")


@needs_data
def test_parts_of_the_servegen_files_share_no_client_and_no_day() -> None:
    """Across all of them: mid80 and tail98 share clients, both come from the tables."""
    split = load_split("servegen")
    owners: dict[str, set[Part]] = {}
    volume = dict.fromkeys(Part, 0)
    rates = read_client_rates(DATA / "servegen_client_rates.parquet")
    names = [model_name(pool, c) for pool, c in zip(rates.pool, rates.client, strict=True)]
    for name, requests in zip(names, rates.requests.tolist(), strict=True):
        owners.setdefault(name, set()).add(split.part_of_model(name))
        volume[split.part_of_model(name)] += requests
    days: dict[Part, set[int]] = {part: set() for part in Part}
    for file in ("servegen_mid80_24h", "servegen_tail98_days0-8"):
        stream = open_stream(TraceSource(path=str(DATA / f"{file}.parquet")))
        first = split.first_day(file)
        for part in Part:
            for cut in split.select(stream, part, file):
                low, high = map(int, cut.lineage[-1].split()[-2:])
                days[part] |= set(range(low, high + 1))
                assert first <= low
                for model in cut.models:
                    owners.setdefault(model, set()).add(part)
    assert len(owners) > 300
    assert all(len(parts) == 1 for parts in owners.values())
    assert not days[Part.TRAIN] & days[Part.VALIDATION]
    assert not days[Part.TRAIN] & days[Part.TEST]
    assert not days[Part.VALIDATION] & days[Part.TEST]
    assert all(days.values())
    assert min(volume.values()) > 0.02 * sum(volume.values())
