"""The shell computes what transformers' model computes, with weights and KV elsewhere."""

import pytest
import torch
from engine_rig import ask, engine_of, tokens_of, turn
from tiny_models import ARCHITECTURES, SMALL, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.engine.attention import AttentionBatch
from runtime.engine.model import SERVED, Shell, read_config, shape_key
from runtime.errors import UserError

BLOCK = 4
PROMPT = 21  # longer than the sliding windows of the tiny models


class Rig:
    """One request's KV in scattered blocks of plain memory."""

    def __init__(self, model, blocks: int = 24) -> None:
        self.shell = Shell(model.config.to_dict(), torch.float32, "cpu")
        self.shell.bind("a", lambda: dict(model.named_parameters()))
        layers, heads, size = self.shell.geometry
        self.kv = torch.full((blocks, layers, 2, BLOCK, heads, size), float("nan"))
        self.table = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)).tolist()

    def logits(self, tokens: torch.Tensor, start: int, rows=None) -> torch.Tensor:
        end = start + len(tokens)
        batch = AttentionBatch.of([self.table], [len(tokens)], [end], block=BLOCK)
        layers = [self.kv[:, layer] for layer in range(self.kv.shape[1])]
        return self.shell.forward(tokens, torch.arange(start, end), layers, batch, rows)


def prompt() -> torch.Tensor:
    return torch.randint(3, 199, (PROMPT,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_shell_gives_the_logits_of_transformers_whole_chunked_and_stepwise(kind):
    model, tokens = tiny_model(kind), prompt()
    with torch.no_grad():
        wanted = model(tokens[None]).logits[0]
    whole = Rig(model).logits(tokens, 0)
    torch.testing.assert_close(whole, wanted, rtol=1e-4, atol=1e-4)
    rig = Rig(model)
    parts = [rig.logits(tokens[a:b], a) for a, b in ((0, 9), (9, 17), (17, 18), (18, 21))]
    torch.testing.assert_close(torch.cat(parts), wanted, rtol=1e-4, atol=1e-4)


def test_shell_returns_only_the_rows_asked_for():
    rig, tokens = Rig(tiny_model("llama")), prompt()
    some = rig.logits(tokens, 0, torch.tensor([20]))
    assert some.shape == (1, 199)
    torch.testing.assert_close(some[0], rig.logits(tokens, 0)[20])


def test_shell_builds_no_weights_and_keeps_buffers_where_it_computes():
    shell = Shell(tiny_model("gemma3_text").config.to_dict(), torch.float32, "cpu")
    assert all(p.is_meta for p in shell._model.parameters())
    assert not any(b.is_meta for b in shell._model.buffers())


def test_shell_names_tied_weights_once():
    model = tiny_model("llama")
    shell = Shell(model.config.to_dict(), torch.float32, "cpu")
    assert len(shell.parameter_names) == len(list(model.parameters()))
    assert "lm_head.weight" not in shell.parameter_names


def test_shell_bound_to_other_weights_computes_with_them():
    first, second, tokens = tiny_model("qwen2"), tiny_model("qwen2", seed=5), prompt()
    rig = Rig(first)
    before = rig.logits(tokens, 0)
    rig.shell.bind("b", lambda: dict(second.named_parameters()))
    assert not torch.allclose(rig.logits(tokens, 0), before)
    rig.shell.bind("a", dict)
    assert torch.equal(rig.logits(tokens, 0), before)


def test_shell_refuses_weights_that_do_not_fit():
    shell = Shell(tiny_model("qwen2").config.to_dict(), torch.float32, "cpu")
    weights = dict(tiny_model("qwen2").named_parameters())
    short = {name: view for name, view in weights.items() if name != "model.norm.weight"}
    with pytest.raises(UserError, match=r"lack 'model.norm.weight'"):
        shell.bind("x", lambda: short)
    with pytest.raises(UserError, match=r"shape \(3,\): expected \(32,\)"):
        shell.bind("x", lambda: {**weights, "model.norm.weight": torch.ones(3)})


@pytest.mark.parametrize(
    "config", [{"model_type": "lama"}, {}, {"model_type": "llama", "auto_map": {"AutoModel": "x"}}]
)
def test_shell_refuses_configs_of_unknown_or_remote_code(config):
    with pytest.raises(UserError, match=r"^config: (model_type is|auto_map)"):
        Shell(config, torch.float32, "cpu")


def test_shape_key_ignores_names_and_sees_shapes():
    config = tiny_model("llama").config.to_dict()
    renamed = {**config, "_name_or_path": "elsewhere"}
    assert shape_key(config, torch.float32) == shape_key(renamed, torch.float32)
    assert shape_key(config, torch.float32) != shape_key(config, torch.bfloat16)
    wider = {**config, "hidden_size": 64}
    assert shape_key(config, torch.float32) != shape_key(wider, torch.float32)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "llama4_text", "bloom", "gemma3", "lama", None])
def test_a_model_whose_layers_are_not_our_attention_is_refused(kind):
    with pytest.raises(UserError, match=r"model_type is .*expected|model_type is .*known: arcee"):
        read_config({"model_type": kind})


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(SERVED - ARCHITECTURES.keys()))
def test_every_model_type_that_is_served_gives_the_tokens_of_generate(kind):
    config = AutoConfig.for_model(kind, **SMALL)
    if getattr(config, "sliding_window", None):
        config.sliding_window = 8
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = list(range(20, 39))
    keys = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 12}
    wanted = model.generate(torch.tensor([tokens]), **keys)[0, len(tokens) :].tolist()
    with engine_of({"m": model}) as engine:
        engine.submit(ask("x", "m", tokens, 12, ignore_eos=True))
        assert tokens_of(turn(engine, "m", prefill=("x",), prefill_chunk_tokens=7))["x"] == wanted
