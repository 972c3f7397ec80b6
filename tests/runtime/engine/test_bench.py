"""The bench reports what it should, by name; how fast this machine is, is not tested."""

import json

import pytest
import torch

from runtime.engine import bench, gpu_check
from runtime.engine.bench_models import plain_model, random_model
from runtime.engine.bench_spec import BenchSpec
from runtime.engine.device import open_device
from runtime.errors import UserError

TINY = BenchSpec(model="tiny", threads=1, tokens=4, prompt_tokens=8, batches=(1, 2), runs=1)


def test_bench_reports_switches_copies_and_decode_beside_generate(monkeypatch):
    monkeypatch.setattr(bench, "SWITCH_BYTES", 1 << 20)
    row = bench.measure(TINY)
    for name in ("switch_over_copy", "copy_gb_s", "switch_gb_s", "kv_in_gb_s", "kv_out_gb_s"):
        assert row[name] > 0
    for batch in TINY.batches:
        ratio = row[f"decode_tokens_s_b{batch}"] / row[f"generate_tokens_s_b{batch}"]
        assert row[f"decode_over_generate_b{batch}"] == pytest.approx(ratio, rel=0.05)
    assert row["switch_resident_s"] > 0
    json.dumps(row)


@pytest.mark.parametrize(
    "keys",
    [
        *({"runs": 0}, {"tokens": 1}, {"batches": ()}, {"batches": (0,)}, {"dtype": "int8"}),
        *({"threads": -1}, {"seed": -1}),
    ],
)
def test_bench_refuses_what_it_cannot_measure(keys):
    with pytest.raises(UserError, match=f"engine.{next(iter(keys))}"):
        BenchSpec(**keys)


def test_bench_refuses_prompts_and_answers_beyond_the_context():
    with pytest.raises(UserError, match="at most 2048, the context of tiny"):
        bench.check_context(BenchSpec(model="tiny", prompt_tokens=2040, tokens=30), 2048)


def test_bench_names_the_nearest_shape():
    with pytest.raises(UserError, match="135m"):
        random_model("135", torch.float32, torch.device("cpu"))


def test_gpu_checks_pass_on_the_cpu_at_tiny_size():
    device = open_device("cpu")
    blobs = {n: random_model("tiny", torch.float32, device.torch, i) for i, n in enumerate("abc")}
    plain = plain_model(blobs["a"], device.torch)
    with bench.bench_engine(device, blobs, 1 << 20) as engine:
        logits = gpu_check.check_logits(TINY, engine, plain)
        assert logits["ok"]
        assert logits["clear_tokens"] > 0
        assert gpu_check.check_reload(TINY, engine)["ok"]
        memory = gpu_check.check_memory(engine, 0)
        assert memory["ok"]
        assert memory["held_by_device"] == memory["arena"]
        wrong = plain_model(blobs["b"], device.torch)
        assert not gpu_check.check_logits(TINY, engine, wrong)["ok"]
    device.close()
