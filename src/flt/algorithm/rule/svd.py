"""FlexLoRA (arXiv 2402.11505): the best approximation of the mean of the products, for clients of any ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flt.algorithm.low_rank import factors
from flt.algorithm.rule.base import Combined, Rule
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.protocol.layout import Layer
from flt.protocol.messages import Update


@dataclasses.dataclass(frozen=True)
class Svd(Rule):
    """The mean of the products, cut to as many pairs as live; the first pairs hold the largest singular values.

        D = sum_i p_i B_i A_i = U S V^T,   B <- U S / n,   A <- n V^T

    p_i = n_i / sum n over the round's clients. D is never formed: the factors come from the QR decompositions of the
    stacked factors and the SVD of a small core (sum r_i, sum r_i). n is the mean norm of the rows of the stacked A (our
    choice: the paper leaves the split between the factors open to a rotation, and a client's optimiser steps are of the
    size of the factors). The scale s is every client's and stays out of D. A client of rank r_k that is sent the first
    r_k pairs (``selection=truncate selection.by=first``) has the best approximation of rank r_k. The rest is averaged.
    Listwise: factors are listed, not added.
    """

    combines: ClassVar[tuple[str, ...]] = ("A", "B")
    mixes_components: ClassVar[bool] = True
    one_group: ClassVar[str] = "each group's components would be mixtures of its own, which can't be compared"

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Decomposes each layer's mean product, averages the rest."""
        new = Mean(weights=self.weights).combine(view, gid, updates).new
        for name, layer in view.layout.layers.items():
            if not any(update.kept[name] for update in updates):
                continue
            left, right = self._cut(layer, updates, len(view.state.active[name]))
            held = {name: view.state.active[name][: left.shape[1]]}
            new[layer.b] = view.layout.put(layer.b, torch.zeros_like(new[layer.b]), held, left)
            new[layer.a] = view.layout.put(layer.a, new[layer.a], held, right)  # pairs beyond go on from B = 0
        return Combined(new)

    def _cut(self, layer: Layer, updates: Sequence[Update], components: int) -> tuple[Tensor, Tensor]:
        """Factors (out, m) and (m, in) of the mean product, m at most ``pairs``."""
        total = sum(self.weight(update) for update in updates)
        columns = [self.weight(u) / total * u.tensors[layer.b].double() for u in updates]
        left, _, right = factors(torch.cat(columns, dim=1), torch.cat([u.tensors[layer.a].double() for u in updates]))
        return left[:, :components], right[:components]
