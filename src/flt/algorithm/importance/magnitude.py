"""Importance by the magnitude of a component."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flt.algorithm.base import ImportancePart
from flt.algorithm.view import View
from flt.protocol.layout import LORA_FACTORS
from flt.protocol.messages import Update
from flt.protocol.state import GroupState


@dataclasses.dataclass(frozen=True)
class Magnitude(ImportancePart):
    """Frobenius norm |s b_i a_i| of the change that component i adds to W0.

    a_i is row i of A, b_i is column i of B, and s is the scale alpha / r. The norm is computed after each round and
    isn't smoothed.

    This score exists for comparison with HAFL's score (arXiv 2411.06581). The choice of the norm is our reconstruction.
    A component that was never trained has b_i = 0 and therefore the lowest score.
    """

    source: ClassVar[str] = "weights"
    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    @property
    def needs_matrices(self) -> bool:
        """Always true, because the score is the norm of a product of two vectors."""
        return True

    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the state of the group with new scores."""
        weights = {name: after.weights[name].double() for name in view.layout.names(LORA_FACTORS)}
        scores = {
            name: abs(layer.scale) * weights[layer.b].norm(dim=0) * weights[layer.a].norm(dim=1)
            for name, layer in view.layout.layers.items()
        }
        return dataclasses.replace(after, scores=scores)
