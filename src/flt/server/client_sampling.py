"""Cohorts: which clients take part in a round, from a generator of their own, so that a resume draws the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flt.core.errors import InputError

_COHORT = 1  # keeps this stream apart from the other streams of the same seed and round


@dataclasses.dataclass
class CohortConfig:
    """Who takes part in a round."""

    sampling: str
    size: int | None
    rate: float


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """Always the same number of clients, without replacement.

    Attributes:
        size: Clients per round, or all that there are where they are fewer; None: all of them.

    Example:
        >>> FixedSize(2)(range(10), seed=0, round=0) == FixedSize(2)(range(10), seed=0, round=0)
        True
    """

    size: int | None = None

    def check(self, clients: int) -> None:
        """Refuses a cohort that is larger than the federation."""
        if self.size is not None and not 1 <= self.size <= clients:
            raise InputError.of("cohort.size", self.size, f"an integer from 1 to the number of clients, {clients}")

    def __call__(self, clients: Sequence[int], seed: int, round: int) -> list[int]:
        """The round's clients, ascending."""
        size = len(clients) if self.size is None else min(self.size, len(clients))
        chosen = np.random.default_rng([seed, round, _COHORT]).choice(len(clients), size, replace=False)
        return sorted(clients[i] for i in chosen)


@dataclasses.dataclass(frozen=True)
class Poisson:
    """Each client on its own with the same probability, as differential privacy assumes; a cohort may be empty.

    Attributes:
        rate: The probability.
    """

    rate: float

    def check(self, clients: int) -> None:
        """Refuses what isn't a probability."""
        if not 0 < self.rate <= 1:
            raise InputError.of("cohort.rate", self.rate, "a number in (0, 1]")

    def __call__(self, clients: Sequence[int], seed: int, round: int) -> list[int]:
        """The round's clients, ascending."""
        drawn = np.random.default_rng([seed, round, _COHORT]).random(len(clients)) < self.rate
        return sorted(client for client, taken in zip(clients, drawn, strict=True) if taken)
