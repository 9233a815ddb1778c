"""Warns of layers whose adapter no client has trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from flt.server.callback import FedCallback
from flt.server.federator import Federator

_log = logging.getLogger(__name__)
MOST = 4
"""Largest number of names in the warning."""


class UntrainedLayers(FedCallback):
    """Warns after the first round if the factors of a layer with LoRA have kept their values in every group.

    This happens if a module reads the weight of a layer and never calls the layer, so that the adapter has no effect.
    The known layers of this kind are refused at the start of a run; a user's own can only be found in this way.
    """

    def __init__(self) -> None:
        self._start: Mapping[str, Tensor] | None = None

    def on_round_start(self, federator: Federator) -> None:
        """Remembers the weights that all jobs start from, before the first round."""
        state = federator.state
        self._start = None if state.rounds else state.groups[state.home].weights

    def on_round_end(self, federator: Federator) -> None:
        """Compares the weights with those before the first round."""
        start, plan = self._start, federator.server.recipe.plan(0)
        roles = set(plan.train) - set(plan.private)
        if start is None or not federator.updates or not {"A", "B"} & roles:
            return
        groups = [group.weights for group in federator.state.groups.values()]
        same = [
            name
            for name, layer in federator.server.layout.layers.items()
            if all(torch.equal(weights[key], start[key]) for weights in groups for key in (layer.a, layer.b))
        ]
        if same:
            names = f"{', '.join(same[:MOST])}{', ...' if len(same) > MOST else ''}"
            _log.warning("no client has trained LoRA on %s: is the layer ever called, or only its weight read?", names)
