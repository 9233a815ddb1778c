"""Weighted mean of each entry over the clients that sent it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from flt.algorithm.low_rank import product_norm
from flt.algorithm.rule.base import WEIGHTS, Combined, Summable, Totals, add
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS
from flt.protocol.messages import Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

NORM = "norm"
PADS = ("none", "parameter", "update", "sent")
UNIT = 2.0**-24
"""Unit to which norms are rounded, so that the weights are integers and the sums of weights are exact."""


@dataclasses.dataclass(frozen=True)
class Mean(Summable):
    """Weighted mean of each entry. By default, it is taken over the clients that sent the entry.

    The default is HAFL's adaptive aggregation (arXiv 2411.06581). If all clients send all entries, the rule is FedAvg
    (arXiv 1602.05629). ``pad`` chooses the formula. In the formulas, w_{k,i} is entry i of client k, n_k is the
    client's weight in the mean, and n is the sum of all n_k. w_t are the weights that the server sent, and S_k is the
    set of entries that client k sent. [i in S_k] is 1 if the client sent entry i, and 0 otherwise.

        none (adaptive)   w_i <- sum_{k: i in S_k} n_k w_{k,i} / sum_{k: i in S_k} n_k
        parameter         w_i <- sum_k n_k w_{k,i} [i in S_k] / n                       (zero-padding)
        update            w_i <- sum_k n_k (w_{k,i} if i in S_k else w_t,i) / n
        sent              like parameter if some client sent entry i, else unchanged (HetLoRA)

    With ``none`` and ``sent``, an entry that no client sent keeps its value. With ``parameter``, an active component
    that no client sent becomes zero in A and in B, and can never be trained again. Inactive components always keep
    their values. ``sent`` is HetLoRA's padding, which pads only up to the largest rank of the round's clients.

    Attributes:
        weights: ``examples``, ``uniform`` or ``norm``. With ``norm`` (HetLoRA, arXiv 2401.06432), the weight n_k of A
            and B in a layer is the Frobenius norm |B_k A_k| of the client's product in this layer. All other tensors
            are weighted by examples. Our reading of the paper is that each layer has its own norm.
        pad: Treatment of an entry that a client didn't send. ``none``: the client doesn't count for this entry.
            ``parameter``: the entry counts as zero. ``update``: it counts as unchanged. ``sent``: it counts as zero if
            another client sent it.
    """

    weighings: ClassVar[tuple[str, ...]] = (*WEIGHTS, NORM)

    pad: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad not in PADS:
            raise InputError.of("rule.pad", self.pad, PADS)

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses the weights ``norm`` if a factor of the product is private.

        Raises:
            InputError: The rule can't be combined with another part.
        """
        super().check_recipe(recipe)
        plan = recipe.plan(0)
        hidden = sorted(set(LORA_FACTORS) & set(plan.train) & set(plan.private))
        if self.weights == NORM and hidden:
            why = f"plan.private keeps {', '.join(hidden)} at the clients, and the server weighs by products"
            raise InputError.of("rule.weights", NORM, "examples, uniform", why)

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that must occur among the module's tensors: A and B with weights ``norm``, otherwise none."""
        return LORA_FACTORS if self.weights == NORM else ()

    @property
    def needs_matrices(self) -> bool:
        """True with weights ``norm``, which are norms of products B A."""
        return self.weights == NORM

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds two terms to the totals for each entry: weight * value, and the weight."""
        norms = self._norms(view, update) if self.weights == NORM else {}
        for name, part in update.tensors.items():
            weight = norms.get(view.layout.entries[name].layer, self.weight(update))
            start = view.sent(update.job, name)
            fill = start if self.pad == "update" else torch.zeros_like(start)
            # Inactive components keep their values under any padding, since a rising rank budget can activate them.
            counts = view.layout.mask(name, update.kept if self.pad == "none" else view.state.active, start)
            add(totals, ("value", name), weight * view.layout.put(name, fill, update.kept, part).double())
            add(totals, ("weight", name), weight * counts.double())
            if self.pad == "sent":
                add(totals, ("sent", name), view.layout.mask(name, update.kept, start).double())

    def finish(self, view: View, gid: int, totals: Totals) -> Combined:
        """Divides the sums by the sums of the weights. Entries to which no client contributed keep the start value."""
        new = dict(view.group(gid).weights)
        for name in (name for what, name in totals if what == "value"):
            weight = totals["weight", name].value()
            old = new[name] if name in new else view.frozen[name]
            mean = (totals["value", name].value() / weight.clamp(min=1)).to(old.dtype)
            known = totals["sent", name].value() if ("sent", name) in totals else weight
            new[name] = torch.where(known > 0, mean, old)
        return Combined(new)

    def _norms(self, view: View, update: Update) -> dict[str, int]:
        """Returns the norm |B_k A_k| by layer, in units of ``UNIT``, as an integer of at least 1.

        The norm is always computed from the update that the server received, even if ``update`` is the untrained update
        of the same job. Both updates therefore have the same weights.
        """
        arrived = view.arrived.get(update.job, update)

        def factor(name: str) -> Tensor:
            received: Mapping[str, Tensor] = arrived.tensors
            if name in received:
                return received[name].double()
            return view.layout.take(name, view.sent(update.job, name), update.kept).double()

        layers = view.layout.layers.items()
        return {name: max(1, round(product_norm(factor(at.b), factor(at.a)) / UNIT)) for name, at in layers}
