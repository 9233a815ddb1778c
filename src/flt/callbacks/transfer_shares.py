"""Logs what a learned transfer between clusters has chosen."""

from __future__ import annotations

import numpy as np

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class TransferShares(FedCallback):
    """Logs what a learned transfer between clusters has chosen in the round.

    - ``transfer/share``: share of other clusters in the change of a cluster, mean over the clusters of the round.
    - ``transfer/gain``: by how much the mixture lowers the loss on the held-out examples of a cluster, mean over the
      clusters. The shares are chosen on the same examples.
    """

    def on_round_end(self, federator: Federator) -> None:
        """Logs the metrics, if there are at least two clusters in the round."""
        held_out = federator.server.held_out
        if held_out is None or not held_out.shares:
            return
        own = [np.prod([1 - share for share in shares.values()]) for shares in held_out.shares.values()]
        gain = np.mean(list(held_out.gains.values()))
        federator.log({"transfer/share": float(1 - np.mean(own)), "transfer/gain": float(gain)})
