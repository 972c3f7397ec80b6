"""SLO accounting, exact to the token and in closed form over a run of decode steps.

A run is k tokens of one request: token j (1-based) appears `curve_ns(x, y, j)` after the run's
start. Token times minus deadlines are convex in j, so the tokens on time form one interval whose
ends a bisection finds. token_attainment: tokens by arrival + TTFT + i*TBT over all tokens due.
qos: the SOSP'25 artifact's covered wall time, where a miss restarts the window with the
accumulated target; it is the more lenient of the two.
"""

import math

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner, kernel
from runtime.core import NONE
from runtime.pool.state import GAP_BINS, Table

GAP_FLOOR_S = 1e-4
GAP_PARTS = 32  # of an octave, equally wide: a bin is 1.6 to 3.1 % wide


@kernel
def curve_ns(x_s: float, y_s: float, j: int) -> int:
    """End of step j, ns after the first step began: x*j + y*j*(j-1)/2, rounded once."""
    return int(round((x_s * j + y_s * (0.5 * j * (j - 1))) * 1e9))  # noqa: RUF046 (a float)


@inner
def lateness_ns(base_ns: int, tbt_ns: int, x_s: float, y_s: float, j: int) -> int:
    """Token j's time minus its deadline; `base_ns` is run start minus the deadline of token 1."""
    return base_ns + curve_ns(x_s, y_s, j) - (j - 1) * tbt_ns


@inner
def last_on_time(base_ns: int, tbt_ns: int, x_s: float, y_s: float, low: int, high: int) -> int:
    """Largest j in [low, high] on time, given that low is on time and lateness is convex."""
    if lateness_ns(base_ns, tbt_ns, x_s, y_s, high) <= 0:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if lateness_ns(base_ns, tbt_ns, x_s, y_s, middle) <= 0:
            low = middle
        else:
            high = middle
    return low


@inner
def first_on_time(base_ns: int, tbt_ns: int, x_s: float, y_s: float, low: int, high: int) -> int:
    """Smallest j in [low, high] on time, given that high is on time and low is late."""
    while high - low > 1:
        middle = (low + high) // 2
        if lateness_ns(base_ns, tbt_ns, x_s, y_s, middle) <= 0:
            high = middle
        else:
            low = middle
    return high


@kernel
def count_on_time(base_ns: int, tbt_ns: int, x_s: float, y_s: float, k: int) -> int:
    """Tokens of a run on time."""
    if lateness_ns(base_ns, tbt_ns, x_s, y_s, 1) <= 0:
        return last_on_time(base_ns, tbt_ns, x_s, y_s, 1, k)
    if lateness_ns(base_ns, tbt_ns, x_s, y_s, k) <= 0:
        return k + 1 - first_on_time(base_ns, tbt_ns, x_s, y_s, 1, k)
    if y_s <= 0.0:
        return 0
    vertex = int((tbt_ns / 1e9 - x_s) / y_s + 0.5)
    for j in range(max(1, vertex - 1), min(k, vertex + 2) + 1):
        if lateness_ns(base_ns, tbt_ns, x_s, y_s, j) <= 0:
            begin = first_on_time(base_ns, tbt_ns, x_s, y_s, 1, j)
            return last_on_time(base_ns, tbt_ns, x_s, y_s, j, k) + 1 - begin
    return 0


@inner
def extend_qos(
    requests: Table, r: int, start_ns: int, tbt_ns: int, x_s: float, y_s: float, k: int
) -> None:
    """Walk the artifact's qos windows over a run; each window is one bisection."""
    req = requests[r]
    begin = start_ns - req.arrival_ns
    j = 1
    while j <= k:
        base = begin + curve_ns(x_s, y_s, j) - req.qos_start_ns - req.qos_target_ns
        if base > 0:  # token j misses: close the window, open the next at this token
            req.qos_ns += req.qos_covered_ns
            req.qos_start_ns = begin + curve_ns(x_s, y_s, j)
            req.qos_covered_ns = 0
            req.qos_target_ns += tbt_ns
            j += 1
            continue
        first_base = begin - req.qos_start_ns - req.qos_target_ns + (j - 1) * tbt_ns
        last = last_on_time(first_base, tbt_ns, x_s, y_s, j, k)
        req.qos_covered_ns = req.qos_target_ns + (last - j) * tbt_ns
        req.qos_target_ns += (last - j + 1) * tbt_ns
        j = last + 1


@kernel
def account_run(
    requests: Table,
    r: int,
    ttft_ns: int,
    tbt_ns: int,
    start_ns: int,
    x_s: float,
    y_s: float,
    k: int,
) -> None:
    """Charge a run of k tokens that began at `start_ns` to request r; emitted_tokens grows by k.

    A run whose first and last token are on time has no late one in between (convexity).
    """
    ends = curve_ns(x_s, y_s, 1), curve_ns(x_s, y_s, max(1, k - 1)), curve_ns(x_s, y_s, k)
    account_ends(requests, r, ttft_ns, tbt_ns, start_ns, x_s, y_s, k, ends)


@inner
def account_ends(
    requests: Table,
    r: int,
    ttft_ns: int,
    tbt_ns: int,
    start_ns: int,
    x_s: float,
    y_s: float,
    k: int,
    ends_ns: tuple[int, int, int],
) -> None:
    """`account_run` with the ends of its first, last but one and last step, which all requests of
    a batch share."""
    req = requests[r]
    first, last = start_ns + ends_ns[0], start_ns + ends_ns[2]
    span = (k - 1) * tbt_ns
    due = req.arrival_ns + ttft_ns + req.emitted_tokens * tbt_ns
    if first <= due and last <= due + span:
        req.on_time_tokens += k
    else:
        req.on_time_tokens += count_on_time(start_ns - due, tbt_ns, x_s, y_s, k)
    due = req.arrival_ns + req.qos_start_ns + req.qos_target_ns
    if first <= due and last <= due + span:
        req.qos_covered_ns = req.qos_target_ns + span
        req.qos_target_ns += span + tbt_ns
    else:
        extend_qos(requests, r, start_ns, tbt_ns, x_s, y_s, k)
    if req.first_token_ns == NONE:
        req.first_token_ns = first
    else:
        req.stall_ns = max(req.stall_ns, first - req.last_token_ns)
    if k > 1:
        req.stall_ns = max(req.stall_ns, ends_ns[2] - ends_ns[1])
    req.last_token_ns = last
    req.emitted_tokens += k


@kernel
def qos_of(requests: Table, r: int, is_served: bool) -> float:
    """The artifact's qos of an ended request, 0..1; 0 when it was not served to its end."""
    req = requests[r]
    clock = req.last_token_ns - req.arrival_ns
    if not is_served or clock <= 0:
        return 0.0
    return (req.qos_ns + min(req.qos_target_ns, clock - req.qos_start_ns)) / clock


@inner
def gap_bin(gap_s: float) -> int:
    """Bin 0 lies below GAP_FLOOR_S; then each octave above it has GAP_PARTS bins."""
    if gap_s < GAP_FLOOR_S:
        return 0
    mantissa, octave = math.frexp(gap_s / GAP_FLOOR_S)
    part = int((mantissa - 0.5) * (2 * GAP_PARTS))
    return min(GAP_BINS - 1, 1 + (octave - 1) * GAP_PARTS + part)


@kernel
def gap_edge_s(cell: int) -> float:
    """Where a bin begins, seconds."""
    if cell == 0:
        return 0.0
    octave, part = (cell - 1) // GAP_PARTS, (cell - 1) % GAP_PARTS
    return GAP_FLOOR_S * math.ldexp(1.0 + part / GAP_PARTS, octave)


@kernel
def count_gaps(
    gaps: npt.NDArray[np.int64], first_s: float, slope_s: float, n: int, weight: int
) -> None:
    """Add `weight` times the n gaps first, first + slope, ... to the histogram."""
    done = 0
    while done < n:
        cell = gap_bin(first_s + slope_s * done)
        share = n - done
        if slope_s > 0.0 and cell < GAP_BINS - 1:
            edge = gap_edge_s(cell + 1)
            share = min(share, max(1, int(np.ceil((edge - first_s) / slope_s)) - done))
        gaps[cell] += weight * share
        done += share


def gap_quantile_s(gaps: npt.NDArray[np.int64], q: float) -> float:
    """Quantile of the gaps between tokens, seconds: the middle of its bin; NaN without gaps."""
    total = int(gaps.sum())
    if total == 0:
        return float("nan")
    cell = int(np.searchsorted(np.cumsum(gaps), q * total))
    if cell == 0:
        return GAP_FLOOR_S
    return 0.5 * (gap_edge_s(cell) + gap_edge_s(cell + 1))
