"""Blobs: what is stored comes back, shared; what is damaged is refused in a line."""

import dataclasses
import hashlib
import json
import mmap
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from runtime.engine.blob import attach_blob, blob_from, blob_of, open_blob
from runtime.engine.blob_index import BlobIndex, TensorSpec, digest, parsed
from runtime.engine.host_memory import HostMemory
from runtime.errors import UserError

LLAMA = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=40,
    tie_word_embeddings=True,
)


def refused(act, *, naming=""):
    """`act` ends in a UserError of one line."""
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    assert naming in str(error.value)


def sound(text):
    """The index in `text`, or None when it is refused in one line."""
    try:
        return parsed(text, "index.json")
    except UserError as error:
        return None if "\n" not in str(error) else error


def test_blob_holds_every_weight_and_tied_ones_once(blob, weights):
    assert blob.index.tied == {"tied.weight": "a.weight"}
    for name, tensor in blob.tensors().items():
        assert torch.equal(tensor, weights[name])
        assert tensor.dtype == weights[name].dtype
    assert blob.tensors()["tied.weight"].data_ptr() == blob.tensors()["a.weight"].data_ptr()


def test_blob_is_aligned_for_copies_and_kernels(blob):
    assert blob.nbytes % 4096 == 0
    assert blob.host.data_ptr() % 4096 == 0
    assert all(spec.offset % 256 == 0 for spec in blob.index.tensors.values())


def test_blob_saved_and_opened_is_the_same(blob, tmp_path):
    blob.save(tmp_path)
    again = open_blob(tmp_path)
    assert again.index == blob.index
    assert torch.equal(again.host, blob.host)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "weights.bin"]


def test_blob_of_a_model_splits_by_its_own_plan():
    index = blob_of(LlamaForCausalLM(LLAMA)).index
    split = {name.split(".")[-2]: spec.shard_dim for name, spec in index.tensors.items()}
    assert (split["q_proj"], split["o_proj"], split["input_layernorm"]) == (0, 1, None)
    assert split["down_proj"] == 1
    assert index.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert all(spec.shard_of == 1 for spec in index.tensors.values())
    assert index.config["model_type"] == "llama"


def test_blob_of_a_model_without_a_plan_is_whole_everywhere():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    index = blob_of(GPT2LMHeadModel(config)).index
    assert {spec.shard_dim for spec in index.tensors.values()} == {None}


def test_blob_of_several_chunks_is_checked_in_each(tmp_path):
    step = 4096
    large = blob_of(torch.nn.Linear(40, 100), {})
    assert large.nbytes >= 4 * step
    index = dataclasses.replace(
        large.index,
        chunk_bytes=step,
        sha256=tuple(
            hashlib.sha256(large.host[i : i + step].numpy()).hexdigest()
            for i in range(0, large.nbytes, step)
        ),
    )
    (tmp_path / "index.json").write_text(index.text())
    (tmp_path / "weights.bin").write_bytes(large.host.numpy().tobytes())
    assert torch.equal(open_blob(tmp_path).host, large.host)
    damaged = bytearray(large.host.numpy().tobytes())
    damaged[2 * step + 17] ^= 1
    (tmp_path / "weights.bin").write_bytes(damaged)
    refused(lambda: open_blob(tmp_path), naming=f"bytes {2 * step} to {3 * step}")


def test_blob_memory_is_the_same_pages_in_another_process(blob, tmp_path):
    program = """
import sys, torch
from runtime.engine.blob import attach_blob
blob = attach_blob(sys.stdin.buffer.read(), int(sys.argv[1]))
print(float(blob.tensors()["a.weight"].sum()))
blob.tensors()["scalar"].fill_(-3)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(blob.memory.fd)],
        input=blob.index.text().encode(),
        pass_fds=[blob.memory.fd],
        capture_output=True,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(float(blob.tensors()["a.weight"].sum()))
    assert float(blob.tensors()["scalar"]) == -3


def test_host_memory_is_there_whole_and_cannot_be_shrunk():
    memory = HostMemory.create(1 << 20)
    assert os.fstat(memory.fd).st_blocks * 512 >= 1 << 20
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, mmap.PAGESIZE)
    refused(lambda: HostMemory.attach(memory.fd, 4096), naming="expected 4096")
    memory.close()


def test_host_memory_beyond_the_machine_is_refused():
    refused(lambda: HostMemory.create(1 << 60), naming="host memory")


def test_blob_cut_anywhere_is_refused(blob, tmp_path):
    blob.save(tmp_path)
    for file in ("weights.bin", "index.json"):
        path = tmp_path / file
        whole = path.read_bytes()
        ends = {spec.offset + spec.nbytes for spec in blob.index.tensors.values()}
        cuts = ends | {0, 1, len(whole) // 2, len(whole) - 2} | set(range(0, len(whole), 97))
        for cut in sorted(cut for cut in cuts if cut < len(whole) - 1):
            path.write_bytes(whole[:cut])
            refused(lambda: open_blob(tmp_path), naming=file)
        path.write_bytes(whole)
    path = tmp_path / "weights.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    refused(lambda: open_blob(tmp_path), naming="expected")


def test_blob_with_a_flipped_bit_is_refused(blob, tmp_path):
    blob.save(tmp_path)
    path = tmp_path / "weights.bin"
    whole = path.read_bytes()
    for place in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        refused(lambda: open_blob(tmp_path), naming="checksum")


def test_index_with_a_flipped_bit_is_refused_or_means_the_same(blob):
    text = blob.index.text().encode()
    for place in range(len(text)):
        damaged = bytearray(text)
        damaged[place] ^= 1 << place % 7
        assert sound(bytes(damaged)) in (None, blob.index)


def test_blob_absent_or_a_folder_is_refused(tmp_path, blob):
    refused(lambda: open_blob(tmp_path), naming="index.json")
    blob.save(tmp_path)
    (tmp_path / "weights.bin").unlink()
    refused(lambda: open_blob(tmp_path), naming="weights.bin")
    (tmp_path / "weights.bin").mkdir()
    refused(lambda: open_blob(tmp_path), naming="weights.bin")


def test_blob_of_another_index_is_refused(blob, tmp_path, weights):
    other = blob_from({}, {name: w + 1 for name, w in weights.items()})
    blob.save(tmp_path / "one")
    other.save(tmp_path / "two")
    (tmp_path / "one" / "weights.bin").replace(tmp_path / "two" / "weights.bin")
    refused(lambda: open_blob(tmp_path / "two"), naming="checksum")


def sealed(body):
    """An index with a checksum that fits, whatever it says."""
    return json.dumps(body | {"index_sha256": digest(body)}).encode()


def body_of(index: BlobIndex):
    body = json.loads(index.text())
    del body["index_sha256"]
    return body


HUGE = 1 << 70


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("version",), 2, "version"),
        (("version",), None, "version"),
        (("nbytes",), 0, "nbytes"),
        (("nbytes",), -4096, "nbytes"),
        (("nbytes",), HUGE, "nbytes"),
        (("nbytes",), 4097, "nbytes"),
        (("nbytes",), True, "nbytes"),
        (("nbytes",), 8192.0, "nbytes"),
        (("nbytes",), "8192", "nbytes"),
        (("chunk_bytes",), 0, "chunk_bytes"),
        (("chunk_bytes",), 1, "chunk_bytes"),
        (("sha256",), [], "sha256"),
        (("sha256",), "0" * 64, "sha256"),
        (("sha256", 0), 5, "sha256"),
        (("dtype",), "float31", "dtype"),
        (("dtype",), ["float32"], "dtype"),
        (("config",), [], "config"),
        (("tensors",), [], "tensors"),
        (("tensors", "ids"), None, "ids"),
        (("tensors", "ids", "offset"), 8, "offset"),
        (("tensors", "ids", "offset"), 1 << 40, "ends behind"),
        (("tensors", "ids", "offset"), 0, "overlap"),
        (("tensors", "ids", "offset"), -256, "offset"),
        (("tensors", "ids", "shape"), [-1], "shape"),
        (("tensors", "ids", "shape"), [1 << 30, 1 << 30, 1 << 30], "ends behind"),
        (("tensors", "ids", "shape"), [1] * 99, "shape"),
        (("tensors", "ids", "shape"), 3, "shape"),
        (("tensors", "ids", "dtype"), "object", "dtype"),
        (("tensors", "ids", "shard_dim"), 1, "shard_dim"),
        (("tensors", "ids", "shard_of"), 0, "shard_of"),
        (("tensors", "ids", "extra"), 0, "extra"),
        (("tied", "tied.weight"), "absent", "tied"),
        (("tied", "tied.weight"), ["a.weight"], "tied"),
        (("tied", "ids"), "a.weight", "tied"),
        (("extra",), 0, "extra"),
    ],
)
def test_index_that_is_hostile_is_refused_even_with_a_fitting_checksum(blob, path, value, named):
    body = body_of(blob.index)
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    refused(lambda: parsed(sealed(body), "index.json"), naming=named)


@pytest.mark.parametrize("key", ["config", "dtype", "nbytes", "sha256", "tensors", "tied"])
def test_index_without_a_key_is_refused(blob, key):
    body = body_of(blob.index)
    del body[key]
    refused(lambda: parsed(sealed(body), "index.json"), naming=f"no {key}")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b"9" * 10_000,
        b'{"version": 1, "version": 1}',
        b'{"version": 1}',
        b'{"version": "\\ud800\\n"}',
    ],
)
def test_index_that_is_no_index_is_refused(text):
    refused(lambda: parsed(text, "index.json"), naming="index.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_index_with_any_value_anywhere_is_sound_or_refused(data):
    spec = TensorSpec(0, (2, 3), torch.float32)
    index = BlobIndex({"model_type": "toy"}, torch.float32, 4096, {"w": spec}, {}, ("0" * 64,))
    body = body_of(index)
    place = body["tensors"]["w"] if data.draw(st.booleans()) else body
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    if found := sound(sealed(body)):
        memory = torch.zeros(found.nbytes, dtype=torch.uint8)
        assert all(t.numel() * t.element_size() <= 4096 for t in found.views(memory).values())


def test_attached_blob_of_the_wrong_size_is_refused(blob):
    other = HostMemory.create(8192)
    refused(lambda: attach_blob(blob.index.text().encode(), other.fd), naming="expected")
