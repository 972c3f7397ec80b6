"""What a candidate is worth: tokens on time, less what attainment alone would let it sell."""

from collections.abc import Mapping

LOST_WEIGHT = 0.5  # of the share of requests under half their tokens on time
WORST_WEIGHT = 0.25  # of what the worst models lack
TTFT_WEIGHT, TTFT_FREE = 0.2, 0.25  # of TTFT p99 beyond this share of its target
TTFT_MOST = 0.5  # what lies further beyond costs no more


def score(metrics: Mapping[str, float], ttft_slo_s: float) -> float:
    """1 when every token is on time and first tokens come early; at least -1."""
    over = metrics["ttft_p99_s"] / ttft_slo_s - TTFT_FREE
    return (
        metrics["token_attainment"]
        - LOST_WEIGHT * metrics["request_lost"]
        - WORST_WEIGHT * (1.0 - metrics["worst_model"])
        - TTFT_WEIGHT * min(TTFT_MOST, max(0.0, over))
    )
