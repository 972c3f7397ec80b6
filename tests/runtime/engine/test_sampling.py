"""Sampling equals transformers' under one seed, and does not depend on the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from runtime.engine.sampling import Chance, Sampling, filtered, sample
from runtime.errors import UserError

CPU = torch.device("cpu")
VOCAB = 50


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def chance(spec: Sampling, tokens=(), drawn: int = 0, vocab: int = VOCAB) -> Chance:
    return Chance(spec, vocab, CPU, tokens=tokens, drawn=drawn)


SPECS = {
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 1.7},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 0.8, "top_p": 0.7},
    "min_p": {"temperature": 1.5, "min_p": 0.1},
    "penalty": {"temperature": 0.0, "repetition_penalty": 1.5},
    "all": {
        "temperature": 1.3,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
    },
}


@pytest.mark.parametrize("keys", SPECS.values(), ids=SPECS)
def test_sampling_gives_the_tokens_of_generate_under_the_same_seed(keys):
    model, prompt = tiny_model("qwen2"), [5, 9, 9, 31, 7]
    spec = Sampling(seed=11, **keys)
    torch.manual_seed(11)
    options = {**keys, "do_sample": True} if spec.temperature else {**keys, "do_sample": False}
    options.pop("temperature") if not spec.temperature else None
    options.setdefault("top_k", 0) if spec.temperature else None
    wanted = model.generate(
        torch.tensor([prompt]), max_new_tokens=12, eos_token_id=None, **options
    )[0].tolist()
    tokens, state = list(prompt), chance(spec, prompt, vocab=199)
    for _ in range(12):
        with torch.no_grad():
            last = model(torch.tensor([tokens])).logits[:, -1]
        tokens += sample(last, [state]).tokens.tolist()
    assert tokens == wanted


@settings(max_examples=30, deadline=None)
@given(st.permutations(list(SPECS)), st.integers(0, 1000))
def test_sampling_of_a_request_does_not_depend_on_its_batch(names, seed):
    specs = [Sampling(seed=i, **SPECS[name]) for i, name in enumerate(names)]
    rows = logits(len(specs), seed)
    together = sample(rows, [chance(spec, [1, 2]) for spec in specs]).tokens.tolist()
    alone = [
        sample(rows[i : i + 1], [chance(spec, [1, 2])]).tokens.item()
        for i, spec in enumerate(specs)
    ]
    assert together == alone


def test_sampling_resumed_elsewhere_goes_on_as_if_undisturbed():
    spec = Sampling(temperature=1.0, seed=3, repetition_penalty=1.3)
    rows, tokens, state = logits(8), [4], chance(spec, [4])
    for i in range(8):
        tokens += sample(rows[i : i + 1], [state]).tokens.tolist()
    again = chance(spec, tokens[:6], drawn=5)
    rest = [sample(rows[i : i + 1], [again]).tokens.item() for i in range(5, 8)]
    assert rest == tokens[6:]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.floats(0.05, 1.0), st.floats(0, 0.9), st.integers(0, 99))
def test_filters_keep_the_likeliest_and_at_most_what_they_allow(top_k, top_p, min_p, seed):
    row = logits(1, seed)
    kept = filtered(row, [Sampling(temperature=1, top_k=top_k, top_p=top_p, min_p=min_p)])
    alive = kept > -torch.inf
    assert alive[0, row.argmax()]
    assert 1 <= int(alive.sum()) <= min(top_k, VOCAB)
    assert row[alive].min() >= row[~alive].max() if (~alive).any() else True
    assert torch.equal(kept[alive], row[alive])


def test_filters_of_one_request_leave_the_others_alone():
    rows = logits(2)
    kept = filtered(rows, [Sampling(temperature=1), Sampling(temperature=1, top_k=2, top_p=0.5)])
    assert torch.equal(kept[0], rows[0])
    assert int((kept[1] > -torch.inf).sum()) <= 2


def test_logprobs_are_the_models_own_before_any_filter():
    rows = logits(2)
    specs = [Sampling(logprobs=3, repetition_penalty=2.0), Sampling()]
    result = sample(rows, [chance(spec, range(VOCAB)) for spec in specs])
    true = rows.log_softmax(-1)
    first, second = result.logprobs
    assert second is None
    assert first.chosen == pytest.approx(true[0, result.tokens[0]].item())
    assert list(first.top_tokens) == true[0].topk(3).indices.tolist()
    assert first.top == tuple(sorted(first.top, reverse=True))


def test_frequencies_follow_the_distribution():
    row, state = logits(1) / 3, chance(Sampling(temperature=1.0, seed=1))
    counts = torch.zeros(VOCAB)
    for _ in range(4000):
        counts[sample(row, [state]).tokens] += 1
    assert (counts / 4000 - row.softmax(-1)[0]).abs().max() < 0.03


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.1), ("top_k", -1), ("min_p", float("nan")),
     ("repetition_penalty", 0), ("seed", -1), ("logprobs", 99)],
)  # fmt: skip
def test_sampling_refuses_values_out_of_range(key, value):
    with pytest.raises(UserError, match=rf"sampling\.{key}"):
        Sampling(**{key: value})


@pytest.mark.parametrize("keys", [{"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filters_leave_the_likeliest_token(keys):
    rows = logits(3)
    states = [chance(Sampling(temperature=2.0, seed=i, **keys)) for i in range(3)]
    assert torch.equal(sample(rows, states).tokens, rows.argmax(-1))


def test_a_top_k_beyond_the_vocabulary_leaves_all():
    kept = filtered(logits(1), [Sampling(temperature=1, top_k=VOCAB + 1)])
    assert torch.equal(kept, logits(1))


def test_random_numbers_are_counted_even_where_a_batch_mixes_rules():
    specs = [Sampling(temperature=1.0, seed=1), Sampling()]
    states, rows = [chance(s) for s in specs], logits(2)
    for _ in range(3):
        sample(rows, states)
    mixed = sample(rows, states).tokens[0].item()
    assert mixed == sample(rows[:1], [chance(specs[0], drawn=3)]).tokens.item()
