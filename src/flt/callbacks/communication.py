"""Counts what crosses."""

from __future__ import annotations

import math
from typing import Any

from flt.protocol.codec import encoded_size
from flt.protocol.layout import Layout
from flt.protocol.messages import Payload, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Communication(FedCallback):
    """Leaves ``comm/bytes_up`` and ``comm/bytes_down`` of the round, and their totals: the length of the messages.

    Besides ``comm/params_up``, the numbers that a client sends in a round, and what this saves against sending the
    whole model, p of P numbers, counted as SA-FedLoRA (arXiv 2405.09394v1) may have counted it, in both ways:

        comm/reduction_round    1 - p(t) / P
        comm/reduction          1 - sum_t p(t) / (T P)      over the rounds t = 1 .. T until now

    Attempts at a round that failed are part of its bytes. A round in which nobody takes part has none of the three, and
    isn't one of the T.
    """

    def __init__(self) -> None:
        self.total_up = self.total_down = 0
        self.numbers, self.rounds = 0.0, 0

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when a job is sent its payload."""
        federator.counts["bytes_down"] += encoded_size(payload)

    def on_update(self, federator: Federator, update: Update) -> None:
        """Called when a client sends an update."""
        federator.counts["bytes_up"] += encoded_size(update)

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        up, down = (federator.counts[key] + federator.spent[key] for key in ("bytes_up", "bytes_down"))
        self.total_up += up
        self.total_down += down
        federator.log({"comm/bytes_up": up, "comm/bytes_down": down})
        federator.log({"comm/total_up": self.total_up, "comm/total_down": self.total_down})
        if federator.updates:
            self._log_numbers(federator)

    def _log_numbers(self, federator: Federator) -> None:
        sent = sum(tensor.numel() for update in federator.updates for tensor in update.tensors.values())
        each = sent / len({update.job[0] for update in federator.updates})
        self.numbers, self.rounds = self.numbers + each, self.rounds + 1
        whole = model_size(federator.server.layout)
        reduction = {"_round": 1 - each / whole, "": 1 - self.numbers / (self.rounds * whole)}
        federator.log({"comm/params_up": each, **{f"comm/reduction{key}": value for key, value in reduction.items()}})

    def state_dict(self) -> dict[str, Any]:
        """The totals."""
        return {"up": self.total_up, "down": self.total_down, "numbers": self.numbers, "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called before a resumed fit."""
        self.total_up, self.total_down = state.get("up", 0), state.get("down", 0)
        self.numbers, self.rounds = state["numbers"], state["rounds"]


def model_size(layout: Layout) -> int:
    """P, the numbers of a model without its adapter: the base and the head."""
    return sum(math.prod(layout.entries[name].shape) for name in layout.names(["base", "head"]))
