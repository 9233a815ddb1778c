"""Measures the rank budget: the number of active components per layer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class RankBudget(FedCallback):
    """Logs the numbers of active components if a schedule lowers the rank budget.

    - ``ranks/living``: number of active components per layer in the round, as the mean over the layers.
    - ``ranks/smallest``: number of active components of the layer that has the fewest.
    - ``ranks/pruning_error``: relative error |P - P'| / |P| of the product P = BA, in Frobenius norm over all layers.
      P' is the product after the removal of components at the end of the round. The error isn't logged if no component
      was removed, or if the server can't compute the error because A or B is private.
    - ``ranks/clients``: mean rank of the round's jobs, logged only if clients prune their own rank (HetLoRA). The rank
      of a job is the largest number of components that the job sent for one layer.
    """

    state_key: ClassVar[str] = "Budget"

    def on_round_start(self, federator: Federator) -> None:
        """Logs the numbers of active components."""
        counts = [len(ids) for ids in federator.state.active.values()]
        if federator.server.recipe.schedule.cuts and counts:
            federator.log({"ranks/living": float(np.mean(counts)), "ranks/smallest": min(counts)})

    def on_round_end(self, federator: Federator) -> None:
        """Logs the error of a removal of components, and the mean rank of the jobs if clients prune their ranks."""
        if federator.state.pruned is not None:
            federator.log({"ranks/pruning_error": federator.state.pruned})
        sent = [max(map(len, update.kept.values())) for update in federator.updates if update.kept]
        if federator.state.ranks and sent:
            federator.log({"ranks/clients": float(np.mean(sent))})
