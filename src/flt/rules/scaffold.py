"""SCAFFOLD (arXiv 1910.06378): control variates against client drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor

from flt.algebra import drift
from flt.callbacks.local import ControlVariate, LocalFit
from flt.messages import Update
from flt.rules.base import Combined, Rule
from flt.rules.mean import Mean
from flt.view import View


@dataclasses.dataclass(frozen=True)
class Scaffold(Rule):
    """The weighted mean, with the drift of each client taken out of its steps.

        client   g <- g - c_i + c;   c_i+ = c_i - c + (w_t - w_i) / (K lr)
        server   c <- c + (1 / N) sum_i (c_i+ - c_i)

    The server derives c_i+ - c_i from w_t, w_i, K and lr, so nothing but the weights and one scalar goes up. Exact for
    SGD with a constant learning rate; with another optimiser it is a heuristic.
    """

    sends: ClassVar[tuple[str, ...]] = ("c",)
    one_group: ClassVar[str] = "a control variate is the mean drift of the clients that share one model"

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """The mean of the weights, and the new c."""
        new = Mean(weights=self.weights).combine(view, gid, updates).new
        old = view.group(gid).slots.get("c", {})
        c = {name: old.get(name, torch.zeros_like(new[name])) for name in updates[0].tensors}
        return Combined(new, slots={"c": {name: self._next(view, name, value, updates) for name, value in c.items()}})

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: every gradient is corrected by c - c_i."""
        return [ControlVariate(fit)]

    def _next(self, view: View, name: str, c: Tensor, updates: Sequence[Update]) -> Tensor:
        change = torch.zeros_like(c, dtype=torch.float64)
        for update in updates:
            start, pairs = view.sent_to(update.job)[name], update.kept
            moved = view.layout.take(name, start, pairs) - update.tensors[name]
            part = drift(view.layout.take(name, c, pairs), moved, update.steps, update.scalars["lr"])
            change += view.layout.put(name, torch.zeros_like(change), pairs, part)
        return (c + change / view.jobs).to(c.dtype)
