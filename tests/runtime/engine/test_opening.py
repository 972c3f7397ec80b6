"""An engine opens with what it can serve, or says in a line what it lacks."""

import threading

import pytest
from engine_rig import ask, tokens_of, turn
from tiny_models import tiny_model

from runtime.engine.blob import blob_of
from runtime.engine.device import open_device
from runtime.engine.host_cache import HostCache
from runtime.engine.opening import Shelf, opened_engine
from runtime.engine.plan import Plan
from runtime.errors import UserError


@pytest.fixture(scope="module")
def blobs():
    found = {
        "m": blob_of(tiny_model("llama")),
        "n": blob_of(tiny_model("llama", seed=1)),
        "small": blob_of(tiny_model("llama", num_hidden_layers=1, num_key_value_heads=1)),
    }
    yield found
    for blob in found.values():
        blob.close()


def opened(device, blobs, **keys):
    indexes = {name: blob.index for name, blob in blobs.items()}
    return opened_engine(device, Shelf(blobs), indexes, **{"kv_bytes": 1 << 20, **keys})


@pytest.mark.parametrize(
    ("keys", "naming"),
    [
        ({"slots": 0}, "engine.slots=0"),
        ({"kv_bytes": 0}, "engine.kv_bytes=0"),
        ({"kv_bytes": 4000, "host_kv_bytes": 1 << 20}, "engine.kv_bytes is 4000"),
        ({"host_kv_bytes": 5000}, "engine.host_kv_bytes is 5000"),
        ({"host_kv_bytes": -1}, "engine.host_kv_bytes is -1"),
        ({"host_kv_bytes": 1 << 60}, "engine.host_kv_bytes is"),
        ({"kv_bytes": 1 << 60, "host_kv_bytes": 1 << 20}, "engine.memory_bytes is"),
    ],
)
def test_budgets_that_cannot_be_are_refused_and_nothing_is_left_open(device, blobs, keys, naming):
    threads = threading.active_count()
    with pytest.raises(UserError) as error, opened(device, blobs, **keys):
        pass
    assert naming in str(error.value)
    device.close()
    assert threading.active_count() <= threads


def test_no_models_are_refused(device):
    with pytest.raises(UserError, match="no models"), opened(device, {}):
        pass


def test_models_whose_blocks_differ_both_find_room_in_the_host(device, blobs):
    with opened(device, blobs, host_kv_bytes=1 << 18) as engine:
        for name in ("m", "small"):
            engine.submit(ask(name, name, [5, 6, 7], 4, ignore_eos=True))
            turn(engine, name, prefill=(name,), decodes=False, moves_out=True)
            assert not engine.kv.is_on_device(name)


def test_a_prefetch_that_has_no_room_changes_nothing(device, blobs):
    with opened(device, blobs, slots=1) as engine:
        engine.submit(ask("x", "m", [5, 6, 7], 4, ignore_eos=True))
        for event in engine.run_turn(Plan(model="m", prefill=("x",))):
            engine.prefetch("n")
            assert event
        assert engine.residents.find("m")
        assert not engine.residents.find("n")


def test_models_share_a_host_budget_of_one_by_leaving_their_slots(tmp_path, blobs):
    names = ("m", "n")
    for name in names:
        blobs[name].save(tmp_path / name)
    device = open_device("cpu")
    cache = HostCache(tmp_path, blobs["m"].nbytes, device)
    indexes = {name: cache.index(name) for name in names}
    with opened_engine(device, cache, indexes, kv_bytes=1 << 20) as engine:
        for name in names * 2:
            engine.submit(ask(name, name, [5, 6, 7], 2, ignore_eos=True))
            assert len(tokens_of(turn(engine, name, prefill=(name,)))[name]) == 2
            engine.prefetch(names[name == "m"])
            cache.check_integrity()
    cache.close()
    device.close()


def test_a_blob_damaged_on_disk_is_refused_and_the_others_go_on(tmp_path, blobs):
    for name in ("m", "n"):
        blobs[name].save(tmp_path / name)
    weights = tmp_path / "n" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    device = open_device("cpu")
    cache = HostCache(tmp_path, 1 << 30, device)
    indexes = {name: cache.index(name) for name in ("m", "n")}
    with opened_engine(device, cache, indexes, kv_bytes=1 << 20) as engine:
        for name in ("n", "m"):
            engine.submit(ask(name, name, [5, 6, 7], 2, ignore_eos=True))
        with pytest.raises(UserError, match="do not fit their checksum"):
            turn(engine, "n", prefill=("n",))
        engine.check_integrity()
        assert len(tokens_of(turn(engine, "m", prefill=("m",)))["m"]) == 2
    cache.close()
    device.close()


def test_a_model_larger_than_the_slots_is_refused_when_added(device, blobs):
    large = blob_of(tiny_model("llama", num_hidden_layers=5))
    with (
        opened(device, {"m": blobs["m"]}) as engine,
        pytest.raises(UserError, match="the largest slot"),
    ):
        engine.add_model("large", large.index)
    large.close()
