"""Allocation of bits to rank-1 components in a budget of bytes: our reconstruction of HAFLQ (arXiv 2411.06581v2)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from flt.protocol.quantise import BITS, SCALE_BYTES, packed_size, scales_of

DROPPED = 0
"""Precision of a component that isn't sent."""
_LADDER = (DROPPED, *BITS)
"""All precisions in bits, lowest first. A level is an index into this tuple."""


def utility(bits: int) -> float:
    """Returns the utility u(q) = 1 - 4^-(q - 1) of q bits, and 0 for a dropped component. The formula is our choice.

    Each further bit divides the mean squared quantisation error by 4. If this error is taken to be 4^-(q - 1) times a
    vector's squared norm, u is the share of the squared norm that quantisation keeps. u is concave: each further bit
    adds less than the one before.
    """
    return 0.0 if bits == DROPPED else 1.0 - 4.0 ** -(bits - 1)


def cost(lengths: Sequence[int], bits: int) -> int:
    """Returns the size of a component in bytes: the codes and scales of its vectors, and one byte for its precision.

    Args:
        lengths: Lengths of the component's vectors (its row of A and its column of B).
        bits: Precision of the component.
    """
    if bits == DROPPED:
        return 0
    return 1 + sum(packed_size(length, bits) + SCALE_BYTES * scales_of(bits) for length in lengths)


def allocate(scores: Sequence[float], lengths: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Chooses the bits of each component with a greedy algorithm.

    The algorithm tries to maximise sum_i score_i u(q_i) subject to sum_i cost_i(q_i) <= budget. q_i are the bits of
    component i, u is :func:`utility`, and cost_i is :func:`cost`. There are three phases:

    1. All components get the lowest precision. While the total exceeds the budget, the component with the lowest score
       is dropped.
    2. Dropped components that fit into the remaining bytes are added again, the highest score first.
    3. As long as the bytes suffice, one component at a time is raised to its next precision. Each step takes the
       component whose score_i u(q_i) gains the most per byte. Ties go to the lower precision, then to the earlier
       component.

    If no component was dropped, sum_i score_i u(q_i) is below the optimum of the linear relaxation by less than the
    gain of one step of phase 3, since u is concave. If all scores are equal, they are replaced by 1, even if they are
    all zero.

    Args:
        scores: Score of each component, >= 0.
        lengths: For each component, the lengths of its vectors.
        budget: Budget in bytes.

    Returns:
        Bits of each component, 0 for a dropped component.

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
    for component in reversed(order):  # a long component that was dropped last can leave room for short ones
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
    """Returns the heap entry of a component's step to the next level, or None if there is no higher level.

    Returns:
        Minus the gain per byte (so that the best step is the smallest entry), the current level, and the component.
    """
    if level + 1 == len(_LADDER):
        return None
    low, high = _LADDER[level], _LADDER[level + 1]
    price, gain = cost(lengths, high) - cost(lengths, low), weight * (utility(high) - utility(low))
    return (-gain / price if price > 0 else -float("inf"), level, component)
