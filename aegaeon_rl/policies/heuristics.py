"""Heuristics that are weight vectors of the index, and the index with its tuned weights."""

from aegaeon_rl.policies.index import Index
from aegaeon_rl.policies.tuned import shipped


def fcfs() -> Index:
    """First come, first served over models: the oldest open request decides."""
    oldest = {"oldest_wait": 1.0}
    return Index(name="fcfs", turn=oldest, prefetch=oldest, quota_s=1.0)


def least_slack() -> Index:
    """The model whose next deadline, after the switch, is nearest; late ones last."""
    nearest = {"slack_min": -1.0, "all_late": -5.0}
    return Index(name="least_slack", turn=nearest, prefetch=nearest, quota_s=1.0)


def collate() -> Index:
    """Per-model batching: stay with what is loaded, then the most requests; long waits first."""
    crowd = {"waiting": 1.0, "ready": 1.0, "unserved": 4.0}
    return Index(name="collate", turn={**crowd, "is_loaded": 2.0}, prefetch=crowd, quota_s=1.0)


def index_untuned() -> Index:
    """What tuning starts from: sticky, slack-driven turns of a first study (docs/log.md)."""
    shared = {
        "slack_min": -12.7,
        "all_late": -5.2,
        "waiting": 1.8,
        "ready": 2.7,
        "switch_left": -3.96,
        "late_share": -0.41,
        "slack_mean": -1.4,
        "prefetched_elsewhere": -6.89,
    }
    return Index(
        name="index_untuned",
        turn={**shared, "is_loaded": 13.9, "running_elsewhere": -20.0},
        prefetch={**shared, "is_prefetched": 0.37, "running_elsewhere": -20.0},
        quota_s=0.1,
        longest_s=0.5,
    )


def index() -> Index:
    """The index with the shipped weights (data/index.json, with their provenance)."""
    policy = shipped("index")
    assert isinstance(policy, Index)
    return policy
