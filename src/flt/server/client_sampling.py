"""Sampling of a round's clients. The sample depends only on seed and round, so a resume draws the same clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flt.core.errors import InputError

_COHORT = 1  # makes these random numbers differ from all others that are drawn with the same seed and round


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
        size: Number of clients per round. If None, all clients take part. If fewer than ``size`` clients have jobs in
            a round, all clients with jobs take part.

    Example:
        >>> FixedSize(2)(range(10), seed=0, round=0) == FixedSize(2)(range(10), seed=0, round=0)
        True
    """

    size: int | None = None

    def check(self, clients: int) -> None:
        """Checks the size.

        Args:
            clients: Number of clients in the federation.

        Raises:
            InputError: The size is below 1 or above the number of clients.
        """
        if self.size is not None and not 1 <= self.size <= clients:
            raise InputError.of("cohort.size", self.size, f"an integer from 1 to the number of clients, {clients}")

    def __call__(self, clients: Sequence[int], seed: int, round: int) -> list[int]:
        """Returns the ids of the clients of a round, ascending.

        Args:
            clients: Ids of the clients to choose from.
            seed: Seed of the run.
            round: Number of rounds finished before this one.
        """
        size = len(clients) if self.size is None else min(self.size, len(clients))
        chosen = np.random.default_rng([seed, round, _COHORT]).choice(len(clients), size, replace=False)
        return sorted(clients[i] for i in chosen)


@dataclasses.dataclass(frozen=True)
class Poisson:
    """Samples each client independently with the same probability, as differential privacy assumes.

    A round may have no client at all.

    Attributes:
        rate: Probability that a client takes part in a round.
    """

    rate: float

    def check(self, clients: int) -> None:
        """Checks the rate.

        Args:
            clients: Number of clients in the federation; not used.

        Raises:
            InputError: The rate isn't in (0, 1].
        """
        if not 0 < self.rate <= 1:
            raise InputError.of("cohort.rate", self.rate, "a number in (0, 1]")

    def __call__(self, clients: Sequence[int], seed: int, round: int) -> list[int]:
        """Returns the ids of the clients of a round, ascending.

        Args:
            clients: Ids of the clients to choose from.
            seed: Seed of the run.
            round: Number of rounds finished before this one.
        """
        drawn = np.random.default_rng([seed, round, _COHORT]).random(len(clients)) < self.rate
        return sorted(client for client, selected in zip(clients, drawn, strict=True) if selected)
