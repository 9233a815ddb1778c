"""Allocation of bits to components under a budget of bytes (HAFLQ, arXiv 2411.06581v2; our reconstruction)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from flt.protocol.quantise import BITS, SCALE_BYTES, packed_size, scales_of

DROPPED = 0
"""Precision of a component that isn't sent."""
_LADDER = (DROPPED, *BITS)
"""All precisions, lowest first. A level is an index into them."""


def utility(bits: int) -> float:
    """Returns the utility u(q) = 1 - 4^-(q - 1) of q bits, and 0 for a dropped component (our choice).

    Up to a factor, u is the share of a vector's power that quantisation keeps: each bit reduces the power of the error
    by a factor of 4. u is therefore concave: each further bit adds less.
    """
    return 0.0 if bits == DROPPED else 1.0 - 4.0 ** -(bits - 1)


def cost(lengths: Sequence[int], bits: int) -> int:
    """Returns the bytes of a component: the codes and scales of its vectors, and one byte for its precision.

    Args:
        lengths: Lengths of the component's vectors.
        bits: Precision of the component.
    """
    if bits == DROPPED:
        return 0
    return 1 + sum(packed_size(length, bits) + SCALE_BYTES * scales_of(bits) for length in lengths)


def allocate(scores: Sequence[float], lengths: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Maximises sum_i score_i u(q_i) subject to sum_i cost_i(q_i) <= budget, greedily.

    All components start at the lowest precision. If this exceeds the budget, the components with the lowest scores are
    dropped; then the dropped ones that fit into the remaining bytes are added again, highest score first. After that,
    the step with the largest gain per byte is taken as long as a step fits. If no component was dropped, the sum is
    less than one step below the optimum of the linear relaxation, since u is concave. If all scores are equal, also if
    all are zero, all components have the same weight. Ties go to the lower precision, then to the earlier component.

    Args:
        scores: Score of each component, >= 0.
        lengths: Lengths of each component's vectors.
        budget: Budget in bytes.

    Returns:
        Bits of each component, 0 for a dropped one.

    Example:
        >>> allocate([1.0, 9.0, 1.0], [(8, 8)] * 3, 60)
        [4, 8, 4]
    """
    weights = list(scores) if len(set(scores)) > 1 else [1.0] * len(scores)
    lowest = [cost(vectors, BITS[0]) for vectors in lengths]
    kept, left = set(range(len(weights))), budget - sum(lowest)
    order = sorted(kept, key=lambda component: (weights[component], -component))
    for component in order:
        if left >= 0:
            break
        kept.remove(component)
        left += lowest[component]
    for component in reversed(order):  # dropping a long component last can leave room for short ones
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
    """Returns a heap entry for a component's step to the next level; None at the highest level.

    Returns:
        Minus the gain per byte, the current level, the component.
    """
    if level + 1 == len(_LADDER):
        return None
    low, high = _LADDER[level], _LADDER[level + 1]
    price, gain = cost(lengths, high) - cost(lengths, low), weight * (utility(high) - utility(low))
    return (-gain / price if price > 0 else -float("inf"), level, component)
