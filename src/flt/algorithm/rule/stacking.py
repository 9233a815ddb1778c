"""FLoRA's stacking (arXiv 2409.05976): adds the exact mean of the clients' products to W0, for any client ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from flt.algorithm.rule.base import Combined, Rule
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.protocol.entries import Layer
from flt.protocol.messages import Update


@dataclasses.dataclass(frozen=True)
class Stacking(Rule):
    """Stacks the clients' factors and adds the product of the stacks to W0. Each round begins with a new adapter.

        A = rows [p_i s A_i],  B = columns [B_i],  W0 <- W0 + B A;  then A is drawn at random and B = 0

    n_i is the weight of client i, p_i = n_i / sum_j n_j over the round's clients, and s is the scale alpha / r. The
    product B A is the weighted mean of the clients' products s B_i A_i. The head is averaged. The rule is listwise: it
    needs all factors at once.
    """

    changes_base: ClassVar[bool] = True
    starts_afresh: ClassVar[bool] = True
    combines: ClassVar[tuple[str, ...]] = ("A", "B")
    one_group: ClassVar[str] = "there is one base, and stacking writes into it"

    @property
    def needs_matrices(self) -> bool:
        """Always true, because the rule works on the clients' products B A."""
        return True

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Stacks the factors, averages all other tensors, and draws the adapter of the next round."""
        new = Mean(weights=self.weights).combine(view, gid, updates).new
        base: dict[str, tuple[Tensor, ...]] = {
            layer.base: self._stack(layer, updates) for layer in view.layout.layers.values()
        }
        for number, layer in enumerate(view.layout.layers.values()):
            new[layer.a] = fresh_a(new[layer.a], int(view.generator(number).integers(2**62)))
            new[layer.b] = torch.zeros_like(new[layer.b])
        return Combined(new, base=base)

    def _stack(self, layer: Layer, updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
        total = sum(self.weight(update) for update in updates)
        rows = [self.weight(u) / total * layer.scale * u.tensors[layer.a].double() for u in updates]
        columns = torch.cat([u.tensors[layer.b] for u in updates], dim=1)  # (out, sum r_i)
        stacked = torch.cat(rows).to(columns.dtype)  # (sum r_i, in)
        return layer.stored(columns, stacked)


def fresh_a(like: Tensor, seed: int) -> Tensor:
    """Draws a new A (r, in) from the distribution that peft uses: Kaiming-uniform with a = sqrt(5)."""
    fresh = torch.empty_like(like)
    nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=torch.Generator().manual_seed(seed))
    return fresh
