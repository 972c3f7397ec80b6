"""The Triton kernels against the reference, in Triton's interpreter, which must be chosen before
Triton is imported: one child process runs all cases."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CASES = {
    "plain": {},
    "many_splits": {"splits": 4},
    "more_splits_than_tiles": {"splits": 8, "contexts": [5, 70]},
    "window": {"window": 20, "splits": 2},
    "window_of_one": {"window": 1},
    "softcap": {"softcap": 0.5, "splits": 2},
    "sinks": {"sinks": True, "splits": 2},
    "odd_size": {"size": 24},
    "no_sharing": {"share": 1, "key_heads": 3},
    "all_at_once": {"window": 70, "softcap": 0.5, "sinks": True, "splits": 4, "size": 24},
    "half": {"dtype": "float16", "splits": 2},
}

CHILD = """
import json, sys, traceback
import torch
from runtime.engine.attention import AttentionBatch, reference
from runtime.engine.attention_triton import paged_decode

def case(contexts=(1, 70, 130), share=3, key_heads=2, size=16, block=16, dtype="float32",
         sinks=False, splits=None, **options):
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    counts = [-(-c // block) for c in contexts]
    order = torch.randperm(sum(counts) + 2).tolist()
    tables = [[order.pop() for _ in range(n)] for n in counts]
    kv = torch.full((sum(counts) + 2, 2, 2, block, key_heads, size), float("nan"), dtype=dtype)
    for table, context in zip(tables, contexts):
        for place in range(context):
            kv[table[place // block], :, :, place % block] = torch.randn(2, 2, key_heads, size)
    batch = AttentionBatch.of(tables, [1] * len(contexts), list(contexts), block=block)
    query = torch.randn(len(contexts), share * key_heads, size).to(dtype)
    options |= {"scale": 0.4, "sinks": torch.randn(share * key_heads) if sinks else None}
    out = paged_decode(query, kv[:, 1], batch, splits=splits, **options)
    close = 1e-5 if dtype == torch.float32 else 4e-3
    expected = reference(query, kv[:, 1], batch, **options)
    torch.testing.assert_close(out, expected, rtol=close, atol=close)

found = {}
for name, options in json.loads(sys.argv[1]).items():
    try:
        case(**options)
        found[name] = ""
    except Exception:
        found[name] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_paged_decode_equals_the_reference(found, name):
    assert not found[name], found[name]
