"""Counts what crosses."""

from __future__ import annotations

from typing import Any

from flt.callbacks.base import FedCallback
from flt.federator import Federator
from flt.messages import Payload, encode


class Communication(FedCallback):
    """Leaves ``comm/bytes_up`` and ``comm/bytes_down`` of the round, and their totals: the length of the messages."""

    def __init__(self) -> None:
        self.up = self.down = self.total_up = self.total_down = 0

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        self.up = self.down = 0

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when a job is sent its payload."""
        self.down += len(encode(payload))

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        self.up = sum(len(encode(update)) for update in federator.updates)
        self.total_up += self.up
        self.total_down += self.down
        federator.log({"comm/bytes_up": self.up, "comm/bytes_down": self.down})
        federator.log({"comm/total_up": self.total_up, "comm/total_down": self.total_down})

    def state_dict(self) -> dict[str, Any]:
        """The totals."""
        return {"up": self.total_up, "down": self.total_down}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called before a resumed fit."""
        self.total_up, self.total_down = state.get("up", 0), state.get("down", 0)
