"""Measures the rank budget: the number of active components per layer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class RankBudget(FedCallback):
    """Logs the number of active components, the pruning error, and the mean rank of the jobs.

    - ``ranks/living``: mean over the layers of the number of active components in the round. Logged only if a schedule
      lowers the rank budget.
    - ``ranks/smallest``: smallest number of active components of any layer. Logged like ``ranks/living``.
    - ``ranks/pruning_error``: relative error |P - P'| / |P|, in Frobenius norm over all layers. P = BA is the product
      before the removal of components at the end of the round, and P' is the product afterwards. The error isn't logged
      if no component was removed, or if the server can't compute the error because A or B is private.
    - ``ranks/clients``: mean rank of the round's jobs. The rank of a job is the largest number of components that the
      job sent for one layer. Logged only if clients prune their own rank (HetLoRA).
    """

    state_key: ClassVar[str] = "Budget"

    def on_round_start(self, federator: Federator) -> None:
        """Logs the numbers of active components."""
        counts = [len(ids) for ids in federator.state.active.values()]
        if federator.server.recipe.schedule.cuts and counts:
            federator.log({"ranks/living": float(np.mean(counts)), "ranks/smallest": min(counts)})

    def on_round_end(self, federator: Federator) -> None:
        """Logs the pruning error, and the mean rank of the jobs if clients prune their own rank."""
        if federator.state.pruned is not None:
            federator.log({"ranks/pruning_error": federator.state.pruned})
        sent = [max(map(len, update.kept.values())) for update in federator.updates if update.kept]
        if federator.state.ranks and sent:
            federator.log({"ranks/clients": float(np.mean(sent))})
