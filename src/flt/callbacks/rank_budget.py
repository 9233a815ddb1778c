"""Measures the rank budget."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class RankBudget(FedCallback):
    """Logs ``ranks/living``, ``ranks/smallest`` and ``ranks/pruning_error`` if a schedule changes the budget.

    ``ranks/living`` and ``ranks/smallest`` are the mean and the smallest number of active components of a layer in the
    round. ``ranks/pruning_error`` is the relative change of the product P = BA by the cut after the round,
    |P - P'| / |P| in Frobenius norm over all layers; it is missing if nothing was cut.

    If jobs gave up components by themselves, ``ranks/clients`` is also logged: each job counts the components of its
    largest layer, and the mean is taken over the round's jobs.
    """

    state_key: ClassVar[str] = "Budget"

    def on_round_start(self, federator: Federator) -> None:
        """Logs the numbers of active components."""
        counts = [len(ids) for ids in federator.state.active.values()]
        if federator.server.recipe.schedule.cuts and counts:
            federator.log({"ranks/living": float(np.mean(counts)), "ranks/smallest": min(counts)})

    def on_round_end(self, federator: Federator) -> None:
        """Logs the error of the cut and the ranks of the clients, if there are any."""
        if federator.state.pruned is not None:
            federator.log({"ranks/pruning_error": federator.state.pruned})
        sent = [max(map(len, update.kept.values())) for update in federator.updates if update.kept]
        if federator.state.ranks and sent:
            federator.log({"ranks/clients": float(np.mean(sent))})
