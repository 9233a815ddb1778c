"""Buffers that training changes, such as the running statistics of a batch norm: averaged, private, or put back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from flt.algorithm.base import Part
from flt.algorithm.rule.base import Rule, Totals, add
from flt.algorithm.view import View
from flt.core.errors import InputError, diverged
from flt.protocol.layout import BUFFER, MEAN, VARIANCE, Layout
from flt.protocol.messages import Plan, Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

VALUE, WEIGHT, COUNT = "buffer", "buffer weight", "buffer count"
CHOICE, VOTES = "buffer choice", "buffer votes"
WIDE = 2.0**18
"""Terms from this size on are added in several parts, because an exact sum has an upper limit.

Inputs that nobody has normalised have variances that reach the limit. With this size, the parts of as many clients as
an exact sum can have don't reach it.
"""


@dataclasses.dataclass(frozen=True)
class BuffersPart(Part):
    """Policy for the buffers of a module's state dict. By default, clients send no buffers, and keep none.

    The server never sends a buffer that no client has changed: every client has the initial value.
    """

    kind: ClassVar[str] = "buffers"
    frozen_in_eval: ClassVar[bool] = True
    """True if a layer with running statistics is in evaluation mode in every fit that doesn't train its weights."""

    def has_global(self, recipe: Recipe, layout: Layout) -> bool:
        """Returns whether there is a global model, rather than models of the clients alone."""
        return True

    def is_sent(self, layout: Layout, plan: Plan, name: str) -> bool:
        """Returns whether a client sends a buffer that its fit has changed."""
        return False

    def is_private(self, layout: Layout, plan: Plan, name: str) -> bool:
        """Returns whether a client keeps a buffer that its fit has changed for its next fit, and doesn't send it."""
        return False

    def adapted(self, layout: Layout) -> Layout:
        """Returns the layout in which ``local`` contains the parameters that this policy keeps on the clients."""
        return layout

    def include(self, view: View, update: Update, weight: int, totals: Totals) -> None:
        """Adds the buffers of an update to the running sums, in place.

        Args:
            view: View of the round.
            update: The update.
            weight: Weight of the update in means.
            totals: The running sums of the round.

        Raises:
            InputError: The values are too large for an exact sum.
        """

    def finish(self, view: View, gid: int, totals: Totals) -> dict[str, Tensor]:
        """Returns the new values of a group's buffers, by name, from the running sums."""
        return {}

    def combine(self, view: View, gid: int, updates: Sequence[Update], rule: Rule) -> dict[str, Tensor]:
        """Returns the new values of a group's buffers, by name, from the updates of its members."""
        totals: Totals = {}
        for update in updates:
            self.include(view, update, rule.weight(update), totals)
        return self.finish(view, gid, totals)


@dataclasses.dataclass(frozen=True)
class Average(BuffersPart):
    """Statistics of all clients' examples together.

        m = sum_k n_k m_k / n,   v = sum_k n_k (v_k + (m_k - m)^2) / n,   c = c_t + sum_k (c_k - c_t)

    m_k, v_k and c_k are client k's running mean, running variance and counter after its fit, c_t is the counter that
    it was sent, n_k is the client's weight in means, and n is the sum of all n_k. v is the law of total variance. A
    counter is a single integer of 64 bits. A buffer in floating point that is no variance is averaged like a mean. A
    flag is true if it is true on a client that has changed it. Other integers, such as a position in a queue, take the
    value of the clients that have the largest weight together, because a sum or a mean might be no valid position.
    FedAvg (arXiv 1602.05629) knows no buffers: the formulas are our choice.

    With a robust rule, each entry is the median over the clients; of integers, the lower one. Buffers of a private head
    are private, and so are all buffers in a round in which a client sends no tensor.
    """

    def is_sent(self, layout: Layout, plan: Plan, name: str) -> bool:
        """Returns whether a client sends a buffer that its fit has changed."""
        return not self.is_private(layout, plan, name)

    def is_private(self, layout: Layout, plan: Plan, name: str) -> bool:
        """Returns whether a client keeps a buffer that its fit has changed for its next fit, and doesn't send it."""
        return set(plan.train) <= set(plan.private) or ("head" in plan.private and layout.in_head(name))

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses a robust rule of running sums, which can't limit the influence of a client on the statistics.

        Raises:
            InputError: The rule is robust, the recipe streams, and layers with running statistics are trained.
        """
        if recipe.rule.robust and recipe.streams and _trains_statistics(recipe, layout):
            raise self.clash(recipe.rule, "it limits the weights alone, not the running statistics", "local, keep")

    def include(self, view: View, update: Update, weight: int, totals: Totals) -> None:
        """Adds the buffers of an update to the running sums, in place.

        Raises:
            InputError: The values are too large for an exact sum.
        """
        try:
            for name, value in update.buffers.items():
                if _is_counter(value):
                    add(totals, (COUNT, name), value.double() - view.sent_buffer(update.job, name).double())
                elif _is_choice(value):
                    choice = f"{name}={hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
                    _add_wide(totals, (CHOICE, choice), value.double())
                    add(totals, (VOTES, choice), torch.tensor([float(weight), 1.0], dtype=torch.float64))
                else:
                    term = weight * (value.double() + self._offset(view, name, update.buffers))
                    _add_wide(totals, (VALUE, name), term)
                    add(totals, (WEIGHT, name), torch.tensor(float(weight), dtype=torch.float64))
        except OverflowError as error:
            who = f"update of client {update.job[0]}, job {update.job[1]}"
            raise diverged(who, error, "smaller numbers") from error

    def finish(self, view: View, gid: int, totals: Totals) -> dict[str, Tensor]:
        """Returns the new values of a group's buffers, by name, from the running sums."""
        means = {name: _wide(totals, (VALUE, name)) / totals[WEIGHT, name].value()
                 for what, name in totals if what == VALUE}  # fmt: skip
        new = {}
        for name, value in means.items():
            offset = self._offset(view, name, means)
            within = (value - offset).clamp(min=0) if _mean_beside(name, means) else value
            new[name] = within.to(view.buffers[name].dtype)
        for name in (name for what, name in totals if what == COUNT):
            start = view.group_buffer(gid, name)
            new[name] = (start.double() + totals[COUNT, name].value()).to(start.dtype)
        return new | self._chosen(view, totals)

    def _chosen(self, view: View, totals: Totals) -> dict[str, Tensor]:
        """Returns the values of integers for which clients with the largest weight together have voted."""
        votes = {choice: float(total.value()[0]) for (what, choice), total in totals.items() if what == VOTES}
        best: dict[str, str] = {}
        for choice in sorted(votes):
            name = choice.rpartition("=")[0]
            if votes[choice] > votes.get(best.get(name, ""), -1.0):
                best[name] = choice
        return {name: (_wide(totals, (CHOICE, choice)) / totals[VOTES, choice].value()[1]).to(view.buffers[name].dtype)
                for name, choice in best.items()}  # fmt: skip

    def combine(self, view: View, gid: int, updates: Sequence[Update], rule: Rule) -> dict[str, Tensor]:
        """Returns the new values of a group's buffers, by name. With a robust rule, they are medians."""
        if not rule.robust:
            return super().combine(view, gid, updates, rule)
        names = sorted({name for update in updates for name in update.buffers})
        sent = {name: torch.stack([u.buffers[name].double() for u in updates if name in u.buffers]) for name in names}
        ways = {name: "lower" if _is_choice(view.buffers[name]) else "linear" for name in names}
        return {name: found.quantile(0.5, dim=0, interpolation=ways[name]).to(view.buffers[name].dtype)
                for name, found in sent.items()}  # fmt: skip

    def _offset(self, view: View, name: str, values: Mapping[str, Tensor]) -> Tensor | float:
        """Returns (m - m_0)^2 for a running variance, where m_0 is the initial mean, and 0 for any other buffer.

        The second moment about m_0 can be averaged, and m_0 is the same for all clients and groups.
        """
        mean = _mean_beside(name, values)
        return (values[mean].double() - view.buffers[mean].double()).square() if mean else 0.0


@dataclasses.dataclass(frozen=True)
class Local(BuffersPart):
    """FedBN (arXiv 2102.07623): the layers with running statistics stay on the clients, and are never sent.

    Private are the statistics of these layers, their scales and shifts, and all other buffers that training changes.
    """

    def has_global(self, recipe: Recipe, layout: Layout) -> bool:
        """Returns whether there is a global model, which is so if no layer with running statistics is trained."""
        return not _trains_statistics(recipe, layout)

    def is_private(self, layout: Layout, plan: Plan, name: str) -> bool:
        """Returns whether a client keeps a buffer that its fit has changed for its next fit, and doesn't send it."""
        return True

    def adapted(self, layout: Layout) -> Layout:
        """Returns the layout in which ``local`` contains the scales and shifts of layers with running statistics."""
        own = {name for name, entry in layout.entries.items() if name.rpartition(".")[0] in layout.statistics}
        return dataclasses.replace(layout, local=frozenset(own - set(layout.names([BUFFER]))))


@dataclasses.dataclass(frozen=True)
class Keep(BuffersPart):
    """Buffers have their initial values before each fit: whatever a fit makes of them is forgotten."""

    frozen_in_eval: ClassVar[bool] = False


def check_buffers(who: str, update: Update, policy: BuffersPart, layout: Layout, plan: Plan) -> None:
    """Checks that the buffers of an update can be aggregated.

    Raises:
        InputError: A buffer isn't to be sent, doesn't exist in the module, has another shape or type, isn't finite, or
            is a negative variance.
    """
    known = set(layout.names([BUFFER]))
    for name, value in update.buffers.items():
        if name not in known or not policy.is_sent(layout, plan, name):
            raise InputError.of(f"{who}: buffer", name, "buffers that the round asks for")
        entry = layout.entries[name]
        if tuple(value.shape) != entry.shape or value.dtype != entry.dtype:
            raise InputError.of(f"{who}: {name}", f"{tuple(value.shape)} {value.dtype}", f"{entry.shape} {entry.dtype}")
        if not bool(torch.isfinite(value).all()):
            raise diverged(f"{who}: {name}", "not finite", "finite numbers")
        if name.rpartition(".")[2] == VARIANCE and bool((value < 0).any()):
            raise InputError.of(f"{who}: {name}", float(value.min()), "a variance >= 0")


def _trains_statistics(recipe: Recipe, layout: Layout) -> bool:
    trained = layout.statistics if "base" in recipe.plan.roles else filter(layout.in_head, layout.statistics)
    return any(trained)


def _is_counter(value: Tensor) -> bool:
    """Returns whether a buffer counts something: a single integer of 64 bits, as torch's own counters are."""
    return value.dim() == 0 and value.dtype == torch.int64


def _is_choice(value: Tensor) -> bool:
    return not value.is_floating_point() and value.dtype != torch.bool


def _add_wide(totals: Totals, key: tuple[str, str], term: Tensor) -> None:
    """Adds a term of any size: its digits to the base ``WIDE`` have a total each."""
    what, name = key
    high = torch.trunc(term / WIDE)
    add(totals, key, term - high * WIDE)
    if bool(high.any()):
        _add_wide(totals, (f"{what}+", name), high)


def _wide(totals: Totals, key: tuple[str, str]) -> Tensor:
    """Returns the sum of the terms that :func:`_add_wide` has added."""
    what, name = key
    higher = (f"{what}+", name)
    return totals[key].value() + (_wide(totals, higher) * WIDE if higher in totals else 0.0)


def _mean_beside(name: str, values: Mapping[str, Tensor]) -> str:
    """Returns the name of the running mean that belongs to a running variance; empty for any other buffer."""
    layer, _, own = name.rpartition(".")
    mean = f"{layer}.{MEAN}" if layer else MEAN
    return mean if own == VARIANCE and mean in values else ""
