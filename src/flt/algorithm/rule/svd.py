"""FlexLoRA (arXiv 2402.11505): best low-rank approximation of the clients' mean product, for any client ranks."""

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
from flt.protocol.entries import Layer
from flt.protocol.messages import Update


@dataclasses.dataclass(frozen=True)
class Svd(Rule):
    """Approximates the mean of the clients' products, with as many components as are active.

        D = sum_i p_i B_i A_i = U S V^T,   B <- U S / n,   A <- n V^T

    n_i is the weight of client i, and p_i = n_i / sum_j n_j over the round's clients. The new components are in the
    order of the singular values in S, largest first. D is never formed: the new factors come from the QR decompositions
    of the stacked factors, and from the SVD of a small matrix of shape (sum r_i, sum r_i). The scale s is the same for
    all clients and isn't part of D.

    n is the mean norm of the rows of the stacked A (our choice). The paper doesn't say how S is split between A and B,
    but the size of the factors affects the size of a client's optimiser steps.

    With ``selection=truncate selection.by=first``, a client of rank r_k is sent the first r_k components, which form
    the best approximation of D with rank r_k. All other tensors are averaged. The rule is listwise: it needs all
    factors at once.
    """

    combines: ClassVar[tuple[str, ...]] = ("A", "B")
    mixes_components: ClassVar[bool] = True
    one_group: ClassVar[str] = "each group's components would be mixtures of its own, which can't be compared"

    @property
    def needs_matrices(self) -> bool:
        """Always true, because the rule works on the clients' products B A."""
        return True

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Decomposes the mean product of each layer, and averages all other tensors."""
        new = Mean(weights=self.weights).combine(view, gid, updates).new
        for name, layer in view.layout.layers.items():
            if not any(update.kept[name] for update in updates):
                continue
            left, right = self._cut(layer, updates, len(view.state.active[name]))
            held = {name: view.state.active[name][: left.shape[1]]}
            new[layer.b] = view.layout.put(layer.b, torch.zeros_like(new[layer.b]), held, left)
            # Active components beyond the rank of D keep their row of A and get B = 0.
            new[layer.a] = view.layout.put(layer.a, new[layer.a], held, right)
        return Combined(new)

    def _cut(self, layer: Layer, updates: Sequence[Update], components: int) -> tuple[Tensor, Tensor]:
        """Returns factors (out, m) and (m, in) of the approximated mean product, with m at most ``components``."""
        total = sum(self.weight(update) for update in updates)
        columns = [self.weight(u) / total * u.tensors[layer.b].double() for u in updates]
        left, _, right = factors(torch.cat(columns, dim=1), torch.cat([u.tensors[layer.a].double() for u in updates]))
        return left[:, :components], right[:components]
