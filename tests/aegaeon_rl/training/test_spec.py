"""How a policy is trained: what is refused, whole rollouts."""

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.training.spec import TrainSpec
from runtime.errors import UserError

COUNTS = ("decisions", "checkpoints", "pools", "epochs", "batch", "hidden", "rows")
AMOUNTS = ("learning_rate", "horizon_s", "clip", "scale", "shortest_s", "spread", "stride")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        *(({name: 0}, f"train.{name}=0: expected at least 1") for name in COUNTS),
        *(({name: 0.0}, f"train.{name}=0.0: expected more than 0") for name in AMOUNTS),
        *(({name: bad}, "expected more than 0") for name in AMOUNTS for bad in (-1.0, inf, nan)),
        ({"method": "pppo"}, "train.method='pppo': did you mean 'ppo'"),
        ({"population": 5}, "train.population=5: expected an even number"),
        ({"episodes": 0}, "train.episodes=0: expected at least 1"),
        ({"steps": 1}, "train.steps=1: expected at least 2"),
        *(
            ({name: 10**15}, f"train.{name}={10**15}: expected at most")
            for name in (*COUNTS, "steps")
        ),
        ({"pools": 16_384, "steps": 512}, "train.pools=16384, steps=512: expected a product of at"),
        ({"warm_s": -1.0}, "train.warm_s=-1.0: expected 0 or more seconds"),
        ({"longest_s": 20.0}, "train.longest_s=20.0: expected at least shortest_s=30.0"),
        ({"load_scale": (2.0, 1.0)}, r"train.load_scale=\[2.0, 1.0\]: expected 0 < low <= high"),
        ({"gae_lambda": 1.1}, "train.gae_lambda=1.1: expected 0 to 1"),
        ({"gae_lambda": -0.1}, "train.gae_lambda=-0.1: expected 0 to 1"),
        ({"entropy": -0.1}, "train.entropy=-0.1: expected 0 or more"),
        ({"batch": 1}, "train.batch=1: expected 2 or more"),
        ({"pools": 1, "steps": 13, "batch": 12}, "a divisor of pools * steps = 13"),
        ({"train_share": 0.0}, "train.train_share=0.0, validation_share=0.2"),
        ({"train_share": 1.0}, "train.train_share=1.0"),
        ({"validation_share": 0.0}, "validation_share=0.0: expected positive shares"),
        ({"train_share": 0.8}, "that leave time to hold out"),
        ({"quotas_s": ()}, r"train.quotas_s=\[\]: expected a list of one or more"),
        ({"quotas_s": (1e-12,)}, r"train.quotas_s=\[1e-12\]: expected a list of one or more"),
        ({"quotas_s": (1e30,)}, r"train.quotas_s=\[1e\+30\]: expected a list of one or more"),
        (
            {"quotas_s": (0.1, 0.0)},
            r"train.quotas_s=\[0.1, 0.0\]: expected a list of one",
        ),
    ],
)
def test_spec_refuses_by_key_and_value(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("*", r"\*")):
        TrainSpec(**changes)


@settings(max_examples=200, deadline=None)
@given(
    decisions=st.integers(1, 10**7),
    checkpoints=st.integers(1, 20),
    pools=st.integers(1, 300),
    steps=st.integers(2, 300),
    batch=st.integers(2, 5000),
)
def test_segments_are_whole_rollouts_and_batches_equal(
    decisions: int, checkpoints: int, pools: int, steps: int, batch: int
) -> None:
    try:
        spec = TrainSpec(
            decisions=decisions, checkpoints=checkpoints, pools=pools, steps=steps, batch=batch
        )
    except UserError:  # no divisor of the rollout from 2 to batch
        assert all(pools * steps % n for n in range(2, min(batch, pools * steps) + 1))
        return
    assert spec.segment > 0
    assert spec.segment % spec.rollout == 0
    nearest = abs(spec.segment - decisions / checkpoints) <= spec.rollout / 2
    assert nearest or spec.segment == spec.rollout
    assert 2 <= spec.minibatch <= batch
    assert spec.rollout % spec.minibatch == 0
