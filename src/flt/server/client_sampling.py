"""Sampling of cohorts, the clients of a round, by a separate random generator, so that a resume draws the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flt.core.errors import InputError

_COHORT = 1  # separates these random numbers from others of the same seed and round


@dataclasses.dataclass
class CohortConfig:
    """Section ``cohort`` of the configuration."""

    sampling: str
    size: int | None
    rate: float


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """Samples the same number of clients in each round, without replacement.

    Attributes:
        size: Clients per round, or all clients if these are fewer; None: all clients.

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
        """Returns the clients of a round in ascending order."""
        size = len(clients) if self.size is None else min(self.size, len(clients))
        chosen = np.random.default_rng([seed, round, _COHORT]).choice(len(clients), size, replace=False)
        return sorted(clients[i] for i in chosen)


@dataclasses.dataclass(frozen=True)
class Poisson:
    """Samples each client independently with the same probability, as differential privacy assumes.

    A cohort may be empty.

    Attributes:
        rate: Probability that a client takes part.
    """

    rate: float

    def check(self, clients: int) -> None:
        """Refuses a rate that is not a probability."""
        if not 0 < self.rate <= 1:
            raise InputError.of("cohort.rate", self.rate, "a number in (0, 1]")

    def __call__(self, clients: Sequence[int], seed: int, round: int) -> list[int]:
        """Returns the clients of a round in ascending order."""
        drawn = np.random.default_rng([seed, round, _COHORT]).random(len(clients)) < self.rate
        return sorted(client for client, selected in zip(clients, drawn, strict=True) if selected)
