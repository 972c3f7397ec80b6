"""Checkpoints: all of a model arrives, what is damaged or foreign is refused in a line."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from runtime.engine.blob import open_blob
from runtime.engine.convert import (
    blob_from_gguf,
    blob_from_safetensors,
    save_tokenizer,
    smollm2_blob,
    smollm2_file,
)
from runtime.engine.model import read_config, stop_tokens
from runtime.errors import UserError

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16)
    ),
}


def refused(act, naming):
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    assert naming in str(error.value)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
def test_safetensors_arrive_whole_under_the_models_names(name, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = blob_from_safetensors(tmp_path).tensors()
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("stops", "expected"), [([2, 7], {2, 7}), (5, {5}), (None, {2})])
def test_safetensors_end_where_generate_ends(checkpoint, stops, expected):
    path = checkpoint / "generation_config.json"
    if stops is None:
        path.unlink()
    else:
        path.write_text(json.dumps({"eos_token_id": stops}))
    blob = blob_from_safetensors(checkpoint)
    assert stop_tokens(read_config(blob.index.config)) == expected


def test_safetensors_are_converted_to_the_dtype_asked_for(checkpoint):
    blob = blob_from_safetensors(checkpoint, "bfloat16")
    assert blob.index.dtype == torch.bfloat16
    assert blob.index.config["dtype"] == "bfloat16"
    refused(lambda: blob_from_safetensors(checkpoint, "bf16"), "did you mean 'bfloat16'?")


def test_safetensors_cut_anywhere_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for cut in (0, 4, 8, 9, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(lambda: blob_from_safetensors(checkpoint), "model.safetensors")
    path.unlink()
    refused(lambda: blob_from_safetensors(checkpoint), "model.safetensors")


def test_safetensors_with_a_hostile_header_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    for header in (b"{}", b"[]", b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,99]}}'):
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        refused(lambda: blob_from_safetensors(checkpoint), str(checkpoint))
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    refused(lambda: blob_from_safetensors(checkpoint), "model.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("model.norm.weight"), "missing, model.norm.weight"),
        (lambda w: w.update(more=torch.zeros(2)), "unexpected, more"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "mismatched"),
    ],
)
def test_safetensors_of_another_model_are_refused(checkpoint, change, named):
    weights = dict(LlamaForCausalLM(LlamaConfig(**SIZES)).state_dict())
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: blob_from_safetensors(checkpoint), named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[]", "model_type"),
        ('{"model_type": 3}', "model_type"),
        ('{"model_type": "lama"}', "did you mean 'llama'?"),
        ('{"model_type": "llama", "auto_map": {}}', "auto_map"),
        ('{"model_type": "mamba"}', "'mamba': not one that the engine can run exactly"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "quantization_config"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers"),
        ('{"model_type": "llama", "hidden_size": 1048576, "num_hidden_layers": 1}', "of its files"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "config.json"),
        ('{"model_type": "llama", "num_attention_heads": 0}', ""),
    ],
)
def test_config_that_is_none_is_refused(checkpoint, text, named):
    (checkpoint / "config.json").write_text(text)
    refused(lambda: blob_from_safetensors(checkpoint), "" if named == "config.json" else named)


def test_weights_that_are_no_floats_are_refused(checkpoint):
    weights = dict(LlamaForCausalLM(LlamaConfig(**SIZES)).state_dict())
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.int8)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: blob_from_safetensors(checkpoint), f"{name} is I8")


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_an_attention_that_a_config_asks_for_is_not_looked_up(checkpoint, key):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {key: "someone/kernel"}))
    refused(lambda: blob_from_safetensors(checkpoint), "code from a hub is not run")


def test_a_blob_is_not_saved_where_a_file_is(checkpoint):
    blob = blob_from_safetensors(checkpoint)
    refused(lambda: blob.save(checkpoint / "config.json"), "config.json")
    refused(lambda: blob.save(checkpoint / "config.json" / "deeper"), "config.json")


@pytest.mark.parametrize("file", ["../away.safetensors", 3, "/etc/passwd", "absent.safetensors"])
def test_listing_of_files_elsewhere_is_refused(checkpoint, file):
    listing = checkpoint / "model.safetensors.index.json"
    listing.write_text(json.dumps({"weight_map": {"w": file}}))
    refused(lambda: blob_from_safetensors(checkpoint), "safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"GGU", b"GGML", b"GGUF", b"GGUF" + b"\xff" * 40, b"GGUF\3\0\0\0" + b"\0" * 16]
)
def test_gguf_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(lambda: blob_from_gguf(path), "model.gguf")


def test_gguf_absent_is_refused(tmp_path):
    refused(lambda: blob_from_gguf(tmp_path / "absent.gguf"), "absent.gguf")


def smollm2():
    try:
        return smollm2_file()
    except UserError as error:
        return pytest.skip(str(error))


@pytest.mark.parametrize(
    "cut", [1000, 20_000, pytest.param(-1, marks=pytest.mark.long)], ids=["head", "words", "end"]
)
def test_smollm2_cut_is_refused(tmp_path, cut):
    path = tmp_path / "cut.gguf"
    path.write_bytes(smollm2().read_bytes()[:cut])
    refused(lambda: blob_from_gguf(path), "cut.gguf")


@pytest.mark.long
def test_smollm2_blob_gives_the_logits_of_transformers_own_reading(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = smollm2()
    folder = smollm2_blob(tmp_path, dtype="float32")
    twin = smollm2_blob(tmp_path, "twin", dtype="float32")
    blob = open_blob(twin)
    assert (twin / "weights.bin").samefile(folder / "weights.bin")

    tokenizer = AutoTokenizer.from_pretrained(twin, local_files_only=True)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(chat, return_tensors="pt").input_ids

    config = AutoConfig.for_model(**blob.index.config)
    ours = AutoModelForCausalLM.from_config(config).eval()
    ours.load_state_dict(blob.tensors(), assign=True)
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    ).eval()
    read = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=theirs)["tensors"]
    assert theirs.load_state_dict(read, strict=False).unexpected_keys == []
    theirs.tie_weights()
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
        answer = ours.generate(ids, max_new_tokens=12, do_sample=False)
    assert "Hello" in tokenizer.decode(answer[0, ids.shape[1] :])


def test_a_tokenizer_of_nowhere_is_refused(tmp_path):
    refused(lambda: save_tokenizer(tmp_path / "absent", tmp_path), "absent: does not exist")
