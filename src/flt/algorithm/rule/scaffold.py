"""SCAFFOLD (arXiv 1910.06378): control variates against client drift."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from lightning.pytorch import Callback

from flt.algorithm.low_rank import drift
from flt.algorithm.rule.base import Combined, Summable, Totals, add
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.client.fit import ControlVariate, LocalFit
from flt.protocol.messages import Update


@dataclasses.dataclass(frozen=True)
class Scaffold(Summable):
    """The weighted mean, with the drift of each client taken out of its steps.

        client   g <- g - c_i + c;   c_i+ = c_i - c + (w_t - w_i) / (K lr)
        server   c <- c + (1 / N) sum_i (c_i+ - c_i)

    The server derives c_i+ - c_i from w_t, w_i, K and lr, so nothing but the weights and one scalar goes up. Exact for
    SGD without momentum or clipping, under any schedule of its learning rate (lr is then the mean over the K steps);
    with another optimiser it is a heuristic. The paper's global step is ``server_optimizer=momentum`` with beta 0.
    """

    sends: ClassVar[tuple[str, ...]] = ("c",)
    one_group: ClassVar[str] = "a control variate is the mean drift of the clients that share one model"

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: every gradient is corrected by c - c_i."""
        return [ControlVariate(fit)]

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds what the mean adds, and c_i+ - c_i for the entries that trained."""
        self._mean().summand(view, update, totals)
        slots = view.state.groups[view.state.group_of(update.job)].slots.get("c", {})
        for name, part in update.tensors.items():
            start = view.sent(update.job, name)
            c = view.layout.take(name, slots.get(name, torch.zeros_like(start)), update.kept)
            moved = view.layout.take(name, start, update.kept) - part
            change = drift(c, moved, update.steps, update.scalars["lr"]).double()
            nothing = torch.zeros_like(start, dtype=torch.float64)
            add(totals, ("drift", name), view.layout.put(name, nothing, update.kept, change))

    def finish(self, view: View, gid: int, totals: Totals) -> Combined:
        """The mean of the weights, and the new c."""
        new = self._mean().finish(view, gid, totals).new
        old = view.group(gid).slots.get("c", {})
        c = dict(old)
        for name in (name for what, name in totals if what == "drift"):
            before = old.get(name, torch.zeros_like(new[name]))
            c[name] = (before + totals["drift", name].value() / view.sharers(name)).to(before.dtype)
        return Combined(new, slots={"c": c})

    def _mean(self) -> Mean:
        return Mean(weights=self.weights)
