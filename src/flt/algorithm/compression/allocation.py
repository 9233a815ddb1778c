"""How many bits each pair gets under a budget of bytes (HAFLQ, arXiv 2411.06581v2; our reconstruction)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from flt.protocol.quantise import BITS, SCALE_BYTES, packed_size, scales_of

DROPPED = 0
_LADDER = (DROPPED, *BITS)


def utility(bits: int) -> float:
    """u(q) = 1 - 4^-(q - 1), and 0 for a dropped pair (our choice).

    It is the share of a vector's power that quantising keeps, up to a factor: with each bit the error's power falls by
    4. So u is concave: each further bit is worth less.
    """
    return 0.0 if bits == DROPPED else 1.0 - 4.0 ** -(bits - 1)


def cost(lengths: Sequence[int], bits: int) -> int:
    """Bytes of a pair: its vectors' codes and scales, and one for its precision."""
    if bits == DROPPED:
        return 0
    return 1 + sum(packed_size(length, bits) + SCALE_BYTES * scales_of(bits) for length in lengths)


def allocate(scores: Sequence[float], lengths: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Maximises sum_i score_i u(q_i) subject to sum_i cost_i(q_i) <= budget, greedily.

    All pairs begin at the lowest precision; where that doesn't fit, those of the lowest scores are dropped, and taken
    in again, the highest first, where what the others left is enough for them. Then the step with the most gain per
    byte is taken for as long as one fits: where no pair had to go, the sum is that of the linear relaxation but for
    less than one step, as u is concave. Scores that are all equal weigh the same, at zero too; ties go to the lower
    precision, then to the earlier pair.

    Args:
        scores: Of each pair, >= 0.
        lengths: Of each pair's vectors.
        budget: Bytes.

    Returns:
        Bits of each pair, 0 for a dropped one.

    Example:
        >>> allocate([1.0, 9.0, 1.0], [(8, 8)] * 3, 60)
        [4, 8, 4]
    """
    weights = list(scores) if len(set(scores)) > 1 else [1.0] * len(scores)
    lowest = [cost(of, BITS[0]) for of in lengths]
    kept, left = set(range(len(weights))), budget - sum(lowest)
    order = sorted(kept, key=lambda component: (weights[component], -component))
    for component in order:
        if left >= 0:
            break
        kept.remove(component)
        left += lowest[component]
    for component in reversed(order):  # a long pair may have gone after short ones that now fit
        if component not in kept and lowest[component] <= left:
            kept.add(component)
            left -= lowest[component]
    bits = [BITS[0] if component in kept else DROPPED for component in range(len(weights))]
    steps = [step for component in kept if (step := _step(weights[component], lengths[component], 1, component))]
    heapq.heapify(steps)
    while steps:
        _, level, component = heapq.heappop(steps)
        price = cost(lengths[component], _LADDER[level + 1]) - cost(lengths[component], _LADDER[level])
        if price <= left:
            bits[component], left = _LADDER[level + 1], left - price
            if step := _step(weights[component], lengths[component], level + 1, component):
                heapq.heappush(steps, step)
    return bits


def _step(weight: float, lengths: Sequence[int], level: int, component: int) -> tuple[float, int, int] | None:
    """(minus the gain per byte of the step up from a level, the level, the pair); None at the highest."""
    if level + 1 == len(_LADDER):
        return None
    low, high = _LADDER[level], _LADDER[level + 1]
    price, gain = cost(lengths, high) - cost(lengths, low), weight * (utility(high) - utility(low))
    return (-gain / price if price > 0 else -float("inf"), level, component)
