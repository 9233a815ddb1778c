"""Measures how long rounds take."""

from __future__ import annotations

import time
from typing import Any

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Timer(FedCallback):
    """Leaves ``time/round_seconds``, wall time, and ``time/total_seconds``, which a resume goes on from.

    What callbacks before it do at the end of a round, such as evaluation, is part of the round's time.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._start = 0.0

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        if not federator.attempt:
            self._start = time.perf_counter()

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        seconds = time.perf_counter() - self._start
        self.total += seconds
        federator.log({"time/round_seconds": seconds, "time/total_seconds": self.total})

    def state_dict(self) -> dict[str, Any]:
        """The total."""
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called before a resumed fit."""
        self.total = state["total"]
