"""The weighted mean, per entry over those who sent it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flt.errors import InputError
from flt.messages import Update
from flt.rules.base import Combined, Rule
from flt.rules.exact_sum import ExactSum
from flt.view import View

PADS = ("none", "parameter", "update")
Totals = dict[str, tuple[ExactSum, ExactSum]]
"""Name -> (sum of weight * value, sum of weights), per entry."""


@dataclasses.dataclass(frozen=True)
class Mean(Rule):
    """Each entry is averaged over the clients that sent it: HAFL's adaptive aggregation, and FedAvg where all send all.

        none (adaptive)   w_i <- sum_{k: i in S_k} n_k w_{k,i} / sum_{k: i in S_k} n_k;  nobody sent i: it stays
        parameter         w_i <- sum_k n_k w_{k,i} [i in S_k] / n                        (zero-padding)
        update            w_i <- sum_k n_k (w_{k,i} if i in S_k else w_t,i) / n

    The sums are exact, so the mean is summable: ``summand`` streams over updates in any order, on any process, and
    ``finish`` divides once.

    Attributes:
        pad: What an entry counts as that a client didn't send: ``none`` (it doesn't count), ``parameter`` (zero),
            ``update`` (unchanged).
    """

    pad: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad not in PADS:
            raise InputError.of("rule.pad", self.pad, PADS)

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """The mean of one group's updates."""
        totals: Totals = {}
        for update in updates:
            self.summand(view, update, totals)
        return Combined(self.finish(view, gid, totals))

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds one update to the running totals, in place."""
        weight = self.weight(update)
        for name, part in update.tensors.items():
            start = view.sent_to(update.job)[name]
            fill = start if self.pad == "update" else torch.zeros_like(start)
            counts = view.layout.mask(name, update.kept, start).double() if self.pad == "none" else torch.ones(())
            value = view.layout.put(name, fill, update.kept, part).double()
            total, weights = totals.setdefault(
                name, (ExactSum.zeros(tuple(start.shape)), ExactSum.zeros(tuple(counts.shape)))
            )
            total.add(weight * value)
            weights.add(weight * counts)

    def finish(self, view: View, gid: int, totals: Mapping[str, tuple[ExactSum, ExactSum]]) -> dict[str, Tensor]:
        """The group's new weights; an entry that nobody sent keeps its value."""
        new = dict(view.group(gid).weights)
        for name, (total, weights) in totals.items():
            weight = weights.value()
            mean = (total.value() / weight.clamp(min=1)).to(new[name].dtype)
            new[name] = torch.where(weight > 0, mean, new[name])
        return new
