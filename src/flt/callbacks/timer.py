"""Measures the duration of rounds."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from flt.protocol.field_types import Finite
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Timer(FedCallback):
    """Logs ``time/round_seconds``, the wall time of a round, and ``time/total_seconds``, the sum over all rounds.

    The sum includes the rounds before a resume. The time of a round includes the callbacks that are called before this
    one at the end of the round, such as the evaluation.
    """

    state_types: ClassVar = {"total": Finite}

    def __init__(self) -> None:
        self.total = 0.0
        self._start = 0.0

    def on_round_start(self, federator: Federator) -> None:
        """Starts the clock at the first attempt at a round."""
        if not federator.attempt:
            self._start = time.perf_counter()

    def on_round_end(self, federator: Federator) -> None:
        """Logs the time of the round and the total time."""
        seconds = time.perf_counter() - self._start
        self.total += seconds
        federator.log({"time/round_seconds": seconds, "time/total_seconds": self.total})

    def state_dict(self) -> dict[str, Any]:
        """Returns the total time."""
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the total time."""
        self.total = state["total"]
