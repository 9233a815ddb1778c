"""Measures the duration of rounds."""

from __future__ import annotations

import time
from typing import Any

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Timer(FedCallback):
    """Logs the wall time ``time/round_seconds`` and its sum ``time/total_seconds``, which a resume continues.

    The time of a round includes the work of the callbacks before this one at the end of the round, such as evaluation.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._start = 0.0

    def on_round_start(self, federator: Federator) -> None:
        """Starts the clock at the first attempt at a round."""
        if not federator.attempt:
            self._start = time.perf_counter()

    def on_round_end(self, federator: Federator) -> None:
        """Logs the times."""
        seconds = time.perf_counter() - self._start
        self.total += seconds
        federator.log({"time/round_seconds": seconds, "time/total_seconds": self.total})

    def state_dict(self) -> dict[str, Any]:
        """Returns the total."""
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the total."""
        self.total = state["total"]
