"""Follows the rank budget."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from flt.server.callback import FedCallback
from flt.server.federator import Federator


class RankBudget(FedCallback):
    """Leaves, where a schedule changes the budget, ``ranks/living``, ``ranks/smallest`` and ``ranks/pruning_error``.

    Where jobs gave up pairs by themselves, ``ranks/clients`` is the mean over the round's jobs of the most pairs that
    one has of a layer.

    The first two are the mean and the smallest number of living pairs of a layer in this round. The last is what the
    cut after the round took from the product, |P - P'| / |P| in Frobenius norm over all layers; without a cut, nothing.
    """

    state_key: ClassVar[str] = "Budget"

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        counts = [len(ids) for ids in federator.state.active.values()]
        if federator.server.recipe.schedule.cuts and counts:
            federator.log({"ranks/living": float(np.mean(counts)), "ranks/smallest": min(counts)})

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        if federator.state.pruned is not None:
            federator.log({"ranks/pruning_error": federator.state.pruned})
        sent = [max(map(len, update.kept.values())) for update in federator.updates if update.kept]
        if federator.state.ranks and sent:
            federator.log({"ranks/clients": float(np.mean(sent))})
