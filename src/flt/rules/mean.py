"""The weighted mean, per entry over those who sent it."""

from __future__ import annotations

import dataclasses

import torch

from flt.errors import InputError
from flt.messages import Update
from flt.rules.base import Combined, Summable, Totals, add
from flt.view import View

PADS = ("none", "parameter", "update")


@dataclasses.dataclass(frozen=True)
class Mean(Summable):
    """Each entry is averaged over the clients that sent it: HAFL's adaptive aggregation (arXiv 2411.06581).

    Where all send all it is FedAvg (arXiv 1602.05629).

        none (adaptive)   w_i <- sum_{k: i in S_k} n_k w_{k,i} / sum_{k: i in S_k} n_k;  nobody sent i: as it began
        parameter         w_i <- sum_k n_k w_{k,i} [i in S_k] / n                        (zero-padding), of living pairs
        update            w_i <- sum_k n_k (w_{k,i} if i in S_k else w_t,i) / n

    Attributes:
        pad: What an entry counts as that a client didn't send: ``none`` (it doesn't count), ``parameter`` (zero),
            ``update`` (unchanged).
    """

    pad: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad not in PADS:
            raise InputError.of("rule.pad", self.pad, PADS)

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds weight * value, and the weight, per entry."""
        weight = self.weight(update)
        for name, part in update.tensors.items():
            start = view.sent(update.job, name)
            fill = start if self.pad == "update" else torch.zeros_like(start)
            # pairs that don't live keep what they hold, under any padding: a budget that rises wakes them
            counts = view.layout.mask(name, update.kept if self.pad == "none" else view.state.alive, start)
            add(totals, ("value", name), weight * view.layout.put(name, fill, update.kept, part).double())
            add(totals, ("weight", name), weight * counts.double())

    def finish(self, view: View, gid: int, totals: Totals) -> Combined:
        """Divides once; an entry that nobody sent is what the group begins with."""
        new = dict(view.group(gid).weights)
        for name in (name for what, name in totals if what == "value"):
            weight = totals["weight", name].value()
            old = new[name] if name in new else view.frozen[name]
            mean = (totals["value", name].value() / weight.clamp(min=1)).to(old.dtype)
            new[name] = torch.where(weight > 0, mean, old)
        return Combined(new)
