"""Measures the rank budget: the number of active components of the layers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class RankBudget(FedCallback):
    """Logs the numbers of active components if a schedule lowers the rank budget.

    ``ranks/living`` is the mean number of active components of a layer in the round, and ``ranks/smallest`` the
    smallest number. ``ranks/pruning_error`` is the error that the removal of components after the round causes in the
    product P = BA: |P - P'| / |P| in Frobenius norm over all layers. It is missing if no component was removed.

    ``ranks/clients`` is logged only if clients prune their own rank (HetLoRA). It is the mean rank of the round's jobs.
    The rank of a job is the number of components that the job sent for its largest layer.
    """

    state_key: ClassVar[str] = "Budget"

    def on_round_start(self, federator: Federator) -> None:
        """Logs the numbers of active components."""
        counts = [len(ids) for ids in federator.state.active.values()]
        if federator.server.recipe.schedule.cuts and counts:
            federator.log({"ranks/living": float(np.mean(counts)), "ranks/smallest": min(counts)})

    def on_round_end(self, federator: Federator) -> None:
        """Logs the error of the removal if components were removed, and the clients' ranks if clients prune them."""
        if federator.state.pruned is not None:
            federator.log({"ranks/pruning_error": federator.state.pruned})
        sent = [max(map(len, update.kept.values())) for update in federator.updates if update.kept]
        if federator.state.ranks and sent:
            federator.log({"ranks/clients": float(np.mean(sent))})
