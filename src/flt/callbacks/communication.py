"""Counts the bytes and parameters that are sent between server and clients."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from flt.protocol.field_types import Finite, Whole
from flt.protocol.layout import Layout
from flt.protocol.messages import Payload, Update, encoded_size
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Communication(FedCallback):
    """Logs the bytes and parameters that are sent in each round.

    ``comm/bytes_up`` is the total length of the messages from clients to the server in the round. Messages of failed
    attempts at the round are included. ``comm/bytes_down`` is the same for messages from the server to clients.
    ``comm/total_up`` and ``comm/total_down`` are the sums of these numbers over all rounds until now.

    ``comm/params_up`` is p(t), the mean number of parameters that a client sends in round t. The reduction of this
    number is relative to a client that sends all P parameters of the model. The authors of SA-FedLoRA (arXiv
    2405.09394v1) may have used either of two definitions of the reduction. Both are logged:

        comm/reduction_round    1 - p(t) / P
        comm/reduction          1 - sum_t p(t) / (T P)      over the rounds t = 1 .. T until now

    In a round without updates, neither p(t) nor the reductions are logged. T doesn't count such rounds.
    """

    state_types: ClassVar = {"up": Whole, "down": Whole, "numbers": Finite, "rounds": Whole}

    def __init__(self) -> None:
        self.total_up = self.total_down = 0
        self.numbers, self.rounds = 0.0, 0

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Counts the bytes of the payload."""
        federator.counts["bytes_down"] += encoded_size(payload)

    def on_update(self, federator: Federator, update: Update) -> None:
        """Counts the bytes of the update."""
        federator.counts["bytes_up"] += encoded_size(update)

    def on_round_end(self, federator: Federator) -> None:
        """Logs the bytes and parameters of the round, and the totals until now."""
        up, down = (
            federator.counts[key] + federator.counts_of_failed_attempts[key] for key in ("bytes_up", "bytes_down")
        )
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
        """Returns the totals."""
        return {"up": self.total_up, "down": self.total_down, "numbers": self.numbers, "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the totals."""
        self.total_up, self.total_down = state.get("up", 0), state.get("down", 0)
        self.numbers, self.rounds = state["numbers"], state["rounds"]


def model_size(layout: Layout) -> int:
    """Returns P, the number of parameters in the base and the head. The adapter isn't counted."""
    return sum(math.prod(layout.entries[name].shape) for name in layout.names(["base", "head"]))
