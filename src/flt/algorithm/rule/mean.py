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
"""Norms are rounded to multiples of this unit, so that weights are integers and sums are exact."""


@dataclasses.dataclass(frozen=True)
class Mean(Summable):
    """Averages each entry over the clients that sent it: HAFL's adaptive aggregation (arXiv 2411.06581).

    If all clients send all entries, it is FedAvg (arXiv 1602.05629). ``pad`` chooses the formula; S_k are the entries
    that client k sent:

        none (adaptive)   w_i <- sum_{k: i in S_k} n_k w_{k,i} / sum_{k: i in S_k} n_k
        parameter         w_i <- sum_k n_k w_{k,i} [i in S_k] / n                       (zero-padding)
        update            w_i <- sum_k n_k (w_{k,i} if i in S_k else w_t,i) / n
        sent              like parameter, for entries that some client sent: HetLoRA pads to the round's largest rank

    An entry that no client sent keeps its value under ``none`` and ``sent``. Under ``parameter``, an active component
    that no client sent becomes zero in A and in B and never learns again. Inactive components keep their values under
    every padding.

    Attributes:
        weights: ``examples``, ``uniform`` or ``norm``. With ``norm``, the weight of a layer's components is the
            Frobenius norm |B_k A_k| of the client's product in that layer, instead of n_k; all other tensors are
            weighted by examples (HetLoRA, arXiv 2401.06432; that the norm is per layer is our reading).
        pad: Treatment of an entry that a client didn't send: ``none`` (it doesn't count), ``parameter`` (it counts as
            zero), ``update`` (it counts as unchanged), ``sent`` (it counts as zero if another client sent it).
    """

    weighings: ClassVar[tuple[str, ...]] = (*WEIGHTS, NORM)

    pad: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad not in PADS:
            raise InputError.of("rule.pad", self.pad, PADS)

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses weights by norms of products if a factor is private.

        Raises:
            InputError: Another part contradicts this one.
        """
        super().check_recipe(recipe)
        plan = recipe.plan(0)
        hidden = sorted(set(LORA_FACTORS) & set(plan.train) & set(plan.private))
        if self.weights == NORM and hidden:
            why = f"plan.private keeps {', '.join(hidden)} at the clients, and the server weighs by products"
            raise InputError.of("rule.weights", NORM, "examples, uniform", why)

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module's tensors must have: both factors, if their product's norm is the weight."""
        return LORA_FACTORS if self.weights == NORM else ()

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds weight * value and the weight of each entry."""
        norms = self._norms(view, update) if self.weights == NORM else {}
        for name, part in update.tensors.items():
            weight = norms.get(view.layout.entries[name].layer, self.weight(update))
            start = view.sent(update.job, name)
            fill = start if self.pad == "update" else torch.zeros_like(start)
            # Inactive components keep their values under any padding, since a rising budget can activate them.
            counts = view.layout.mask(name, update.kept if self.pad == "none" else view.state.active, start)
            add(totals, ("value", name), weight * view.layout.put(name, fill, update.kept, part).double())
            add(totals, ("weight", name), weight * counts.double())
            if self.pad == "sent":
                add(totals, ("sent", name), view.layout.mask(name, update.kept, start).double())

    def finish(self, view: View, gid: int, totals: Totals) -> Combined:
        """Divides the sums by the weights. Entries without contributions keep the group's initial values."""
        new = dict(view.group(gid).weights)
        for name in (name for what, name in totals if what == "value"):
            weight = totals["weight", name].value()
            old = new[name] if name in new else view.frozen[name]
            mean = (totals["value", name].value() / weight.clamp(min=1)).to(old.dtype)
            known = totals["sent", name].value() if ("sent", name) in totals else weight
            new[name] = torch.where(known > 0, mean, old)
        return Combined(new)

    def _norms(self, view: View, update: Update) -> dict[str, int]:
        """Returns |B_k A_k| by layer, as a multiple of ``UNIT`` and at least 1.

        The norm is always that of the update as received, also if ``update`` is its untrained copy.
        """
        arrived = view.arrived.get(update.job, update)

        def factor(name: str) -> Tensor:
            received: Mapping[str, Tensor] = arrived.tensors
            if name in received:
                return received[name].double()
            return view.layout.take(name, view.sent(update.job, name), update.kept).double()

        layers = view.layout.layers.items()
        return {name: max(1, round(product_norm(factor(at.b), factor(at.a)) / UNIT)) for name, at in layers}
