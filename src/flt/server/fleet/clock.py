"""The simulated clock of a round: when each client's updates arrive, and when the round ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

_TIES = 13  # makes these random numbers differ from all others that are drawn with the same seed


@dataclasses.dataclass(frozen=True)
class Clock:
    """Decides whose updates a round takes.

    Attributes:
        seed: Seed of the run. It decides the order of clients whose updates arrive at the same time.
        deadline: Seconds after which the server goes on. None: it waits for all.
        wanted: Number of clients that the server waits for. None: all that were drawn.
    """

    seed: int = 0
    deadline: float | None = None
    wanted: int | None = None

    def in_time(self, times: Mapping[int, float], round: int) -> list[int]:
        """Returns the clients whose updates the server takes, in the order in which they arrive.

        Args:
            times: Client -> seconds from the start of the round until its last update arrives.
            round: Number of rounds finished before this one.
        """
        tie = dict(zip(sorted(times), self._ties(round, len(times)), strict=True))
        ordered = sorted(times, key=lambda client: (times[client], tie[client]))
        return [client for client in ordered if self.is_in_time(times[client])][: self.wanted]

    def is_in_time(self, seconds: float) -> bool:
        """Returns whether an update that arrives after so many seconds meets the deadline."""
        return self.deadline is None or seconds <= self.deadline

    def length(self, times: Mapping[int, float], taken: Mapping[int, float]) -> float:
        """Returns the simulated seconds of a round.

        The round ends when the last client for which the server waits has arrived. If such a client doesn't arrive in
        time, the round ends at the deadline.

        Args:
            times: Client of the cohort -> seconds that it needs for all its work in the round.
            taken: The clients whose updates were taken -> the same.
        """
        waited_for = min(self.wanted or len(times), len(times))
        if taken and len(taken) >= waited_for:
            return max(taken.values())
        return self.deadline if self.deadline is not None else max(times.values(), default=0.0)

    def _ties(self, round: int, number: int) -> list[int]:
        order: list[int] = np.random.default_rng([self.seed, _TIES, round]).permutation(number).tolist()
        return order
