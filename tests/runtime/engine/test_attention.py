"""`attend` against the reference, over an arena in which every byte that no request owns is NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.attention import AttentionBatch, attend, reference, store

BLOCK = 4


def arena(blocks: int, key_heads: int, size: int, dtype: torch.dtype = torch.float32):
    """[blocks, layers, 2, block, J, D], poisoned."""
    return torch.full((blocks, 3, 2, BLOCK, key_heads, size), float("nan"), dtype=dtype)


def tables_of(contexts: list[int], blocks: int, seed: int) -> list[list[int]]:
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    return [[order.pop() for _ in range(-(-context // BLOCK))] for context in contexts]


def attend_in_steps(plan, *, share=3, key_heads=2, size=8, layer=1, seed=0, **options):
    """The outputs of `attend` and of a plain causal attention, for requests that grow by `plan`.

    `plan` is a list of calls, each a list of new tokens by request (0: not in this call).
    """
    random = torch.Generator().manual_seed(seed)
    totals = [sum(call[r] for call in plan) for r in range(len(plan[0]))]
    blocks = sum(-(-total // BLOCK) for total in totals) + 3
    tables = tables_of(totals, blocks, seed)
    kv = arena(blocks, key_heads, size)
    query, key, value = (
        [torch.randn(total, heads, size, generator=random) for total in totals]
        for heads in (share * key_heads, key_heads, key_heads)
    )
    done = [0] * len(totals)
    outputs = [[x[:0]] for x in query]
    batch = None
    for call in plan:
        rows = [r for r, new in enumerate(call) if new]
        part = {r: slice(done[r], done[r] + call[r]) for r in rows}
        for r in rows:
            done[r] += call[r]
        batch = AttentionBatch.of(
            [tables[r][: -(-done[r] // BLOCK)] for r in rows],
            [call[r] for r in rows],
            [done[r] for r in rows],
            block=BLOCK,
            last=batch,
        )
        together = [torch.cat([x[r][part[r]] for r in rows]) for x in (query, key, value)]
        out = attend(*together, kv[:, layer], batch, **options)
        for r, piece in zip(rows, out.split([call[r] for r in rows]), strict=True):
            outputs[r].append(piece)
    expected = [plain(q, k, v, **options) for q, k, v in zip(query, key, value, strict=True)]
    return [torch.cat(o) for o in outputs], expected


def plain(query, key, value, *, scale, window=None, softcap=None, sinks=None):
    """Causal attention of one sequence, token by token, by the definition."""
    share = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for token in range(query.shape[0]):
        first = 0 if window is None else max(0, token + 1 - window)
        for head in range(query.shape[1]):
            scores = key[first : token + 1, head // share] @ query[token, head] * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (0 if sinks is None else sinks[head].exp())
            out[token, head] = (weights / total) @ value[first : token + 1, head // share]
    return out


def check(plan, **options):
    options.setdefault("scale", 0.3)
    actual, expected = attend_in_steps(plan, **options)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


PREFILL, CHUNKS = [[9, 1, 4]], [[5, 3], [6, 0], [2, 7]]
DECODE = [[5, 9, 2], *[[1, 1, 1]] * 6]
MIXED = [[5, 0], [1, 6], [1, 1], [4, 1], [1, 1]]


@pytest.mark.parametrize("plan", [PREFILL, CHUNKS, DECODE, MIXED])
@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
def test_attend_is_causal_attention_over_pages(plan, window):
    check(plan, window=window)


@pytest.mark.parametrize("plan", [CHUNKS, DECODE])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.3, -1.0, 2.0, 0.0, 0.5, 1.0])])
def test_attend_knows_softcap_and_sinks(plan, window, softcap, sinks):
    check(plan, window=window, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize(("share", "key_heads", "size"), [(1, 1, 8), (1, 4, 16), (8, 1, 12)])
def test_attend_takes_any_sharing_of_heads(share, key_heads, size):
    check(MIXED, share=share, key_heads=key_heads, size=size)


@given(
    plan=st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 12),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_attend_is_the_same_however_the_tokens_are_cut(plan, window, seed):
    plan = [call for call in plan if any(call)]
    if plan:
        check(plan, window=window, seed=seed)


def decode_batch(contexts: list[int], key_heads: int, size: int):
    tables = tables_of(contexts, sum(contexts), 1)
    kv = arena(sum(contexts), key_heads, size)
    batch = AttentionBatch.of(tables, [1] * len(contexts), contexts, block=BLOCK)
    for table, context in zip(tables, contexts, strict=True):
        for place in range(context):
            kv[table[place // BLOCK], :, :, place % BLOCK] = torch.randn(3, 2, key_heads, size)
    new = [torch.randn(len(contexts), heads, size) for heads in (2 * key_heads, key_heads)]
    return new[0], new[1], torch.randn(len(contexts), key_heads, size), kv, batch


@pytest.mark.parametrize("contexts", [[1], [700], [3, 40, 41, 350, 1, 300], [9] * 20])
@pytest.mark.parametrize("window", [None, 33])
def test_attend_decodes_in_groups_as_the_reference_does(contexts, window):
    query, key, value, kv, batch = decode_batch(contexts, 8, 64)
    for layer in (2, 0):
        out = attend(query, key, value, kv[:, layer], batch, scale=0.1, window=window)
        expected = reference(query, kv[:, layer], batch, scale=0.1, window=window)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_attend_in_bfloat16_is_close_to_the_reference():
    query, key, value, kv, batch = (
        x.bfloat16() if isinstance(x, torch.Tensor) else x for x in decode_batch([30, 7], 2, 16)
    )
    out = attend(query, key, value, kv[:, 1], batch, scale=0.2)
    expected = reference(query.float(), kv[:, 1].float(), batch, scale=0.2)
    torch.testing.assert_close(out.float(), expected, rtol=0.03, atol=0.03)


def test_store_touches_the_slots_of_new_tokens_only():
    kv = arena(5, 2, 8)
    batch = AttentionBatch.of([[3, 1]], [2], [5], block=BLOCK)
    key, value = torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    store(key, value, kv[:, 1], batch)
    assert torch.equal(kv[3, 1, 0, 3], key[0])
    assert torch.equal(kv[1, 1, 1, 0], value[1])
    assert int((~kv.isnan()).sum()) == key.numel() + value.numel()
