"""FedEx-LoRA (arXiv 2410.09432), which averages both factors and adds the error of their product to the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flt.algorithm.rule.base import Combined, Rule
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.protocol.entries import Layer
from flt.protocol.messages import Update


@dataclasses.dataclass(frozen=True)
class Residual(Rule):
    """Mean of A and of B, as in FedIT. The error of this mean, which is called the residual, is added to W0.

        A <- Abar = sum_i p_i A_i,   B <- Bbar = sum_i p_i B_i,   W0 <- W0 + s (sum_i p_i B_i A_i - Bbar Abar)

    n_i is the weight of client i, p_i = n_i / sum_j n_j over the round's K clients, and s is the scale alpha / r. The
    difference in brackets is the residual: the mean of the products minus the product of the means. s times the
    residual equals s sum_{i < K} p_i (B_i - Bbar) (A_i - A_K), and is therefore sent to clients as two factors of rank
    (K - 1) r. If the factors are larger than W0, :class:`flt.protocol.state.BaseState` sends the new W0 instead. The
    head is averaged. The rule is listwise: it needs all factors at once.
    """

    changes_base: ClassVar[bool] = True
    combines: ClassVar[tuple[str, ...]] = ("A", "B")
    one_group: ClassVar[str] = "there is one base, and the residual goes into it"
    same_components: ClassVar[str] = "the residual is that of factors with the same components"

    @property
    def needs_matrices(self) -> bool:
        """Always true, because the rule works on the clients' products B A."""
        return True

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Averages all tensors and computes each layer's residual. With one client, there is no residual."""
        new = Mean(weights=self.weights).combine(view, gid, updates).new
        if len(updates) == 1:
            return Combined(new)
        base = {layer.base: self._residual(layer, updates) for layer in view.layout.layers.values()}
        return Combined(new, base=base)

    def _residual(self, layer: Layer, updates: Sequence[Update]) -> tuple[Tensor, ...]:
        total = sum(self.weight(update) for update in updates)
        shares = [self.weight(update) / total for update in updates]
        bs, rows = ([update.tensors[name].double() for update in updates] for name in (layer.b, layer.a))
        mean = torch.stack([share * b for share, b in zip(shares, bs, strict=True)]).sum(dim=0)
        parts = list(zip(shares, bs, rows, strict=True))[:-1]
        left = torch.cat([layer.scale * share * (b - mean) for share, b, _ in parts], dim=1)  # (out, (K - 1) r)
        right = torch.cat([a - rows[-1] for _, _, a in parts])  # ((K - 1) r, in)
        kind = updates[0].tensors[layer.b].dtype
        return layer.stored(left.to(kind), right.to(kind))
