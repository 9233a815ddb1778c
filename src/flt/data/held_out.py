"""Division of a client's examples into training examples and held-out examples, on which its models are evaluated."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flt.core.errors import InputError
from flt.data import random_splits as draws
from flt.data.random_splits import Positions, Seed


def split(positions: ArrayLike, labels: ArrayLike, fraction: float, seed: Seed) -> tuple[Positions, Positions]:
    """Holds out a stratified share of a client's examples.

    Args:
        positions: Positions of the client's examples.
        labels: Class of every example of the data set, shape (n,). The positions are indices of this array.
        fraction: Share of the examples to hold out, in [0, 1).
        seed: Seed of the draws, such as (seed, client).

    Returns:
        The positions (train, held_out), both sorted. If there are any examples, train has at least one. If there are at
        least two examples and fraction > 0, held_out has at least one.

    Raises:
        InputError: fraction is not in [0, 1).

    Example:
        >>> train, held_out = split([2, 3, 4, 5], labels=[0, 0, 0, 0, 1, 1], fraction=0.5, seed=0)
        >>> [[0, 0, 0, 0, 1, 1][i] for i in held_out]
        [0, 1]
    """
    check_fraction(fraction)
    positions = np.asarray(positions, dtype=np.int64)
    order = positions[draws.stratified_order(np.asarray(labels)[positions], seed)]
    size = held_out_size(len(order), fraction)
    return np.sort(order[size:]), np.sort(order[:size])


def held_out_size(size: int, fraction: float) -> int:
    """Returns the number of examples to hold out if there are ``size`` examples."""
    return min(max(round(fraction * size), 1), size - 1) if fraction and size else 0


def check_fraction(fraction: float) -> None:
    """Raises InputError unless the fraction is in [0, 1)."""
    if not 0 <= fraction < 1:
        raise InputError.of("partition.held_out", fraction, "a number in [0, 1)")
