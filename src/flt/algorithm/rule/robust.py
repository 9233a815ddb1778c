"""Robust rules, which limit the influence of a minority of hostile clients on the adapter.

    median, trimmed_mean     treat each entry separately (Yin et al., arXiv 1803.01498)
    krum, multi_krum         choose whole updates by their distances (Blanchard et al., NeurIPS 2017)
    norm_bound               averages updates after limiting the norms of their changes (Sun et al., arXiv 1911.07963)

All rules except norm_bound give every client the same weight, since a hostile client could report any number of
examples.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flt.algorithm.rule.base import Combined, Rule, Totals
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import Update

UNIFORM = ("uniform",)


@dataclasses.dataclass(frozen=True)
class EntryWise(Rule):
    """Base of the rules that sort the values of each entry over all clients that sent the entry.

    These rules are listwise: they need all updates of a group at once.

    Attributes:
        weights: Always ``uniform``.
    """

    weighings: ClassVar[tuple[str, ...]] = UNIFORM
    robust: ClassVar[bool] = True
    sums_values: ClassVar[bool] = False  # values are sorted, so they may have any size

    weights: str = "uniform"

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Sorts the values of each entry, and aggregates them. An entry that no client sent keeps its start value."""
        new = dict(view.group(gid).weights)
        for name in sorted({name for update in updates for name in update.tensors}):
            old = new[name] if name in new else view.frozen[name]
            senders = [update for update in updates if name in update.tensors]
            values = torch.stack([self._column(view, name, old, update) for update in senders]).sort(dim=0).values
            sent = values.isfinite().sum(dim=0)
            new[name] = torch.where(sent > 0, self.middle(values, sent), old.double()).to(old.dtype)
        return Combined(new)

    def _column(self, view: View, name: str, old: Tensor, update: Update) -> Tensor:
        """Returns one client's values. Entries that the client didn't send are infinite and thus sorted last."""
        return view.layout.put(name, torch.full_like(old, math.inf), update.kept, update.tensors[name]).double()

    @abc.abstractmethod
    def middle(self, values: Tensor, sent: Tensor) -> Tensor:
        """Returns the aggregate of each entry.

        Args:
            values: Values of shape (clients, ...), ascending along the first axis. Infinity stands for a value that
                wasn't sent.
            sent: Number of clients that sent each entry, shape (...). If this number is 0, the aggregate of the
                entry isn't used.
        """


@dataclasses.dataclass(frozen=True)
class Median(EntryWise):
    """Median of each entry (arXiv 1803.01498, Definition 1).

    If the number of values is even, the median is the mean of the two middle values.
    """

    def middle(self, values: Tensor, sent: Tensor) -> Tensor:
        """Returns the median of each entry."""
        last = (sent - 1).clamp(min=0)
        low, high = (values.gather(0, at.unsqueeze(0)).squeeze(0) for at in (last // 2, (last + 1) // 2))
        return low + (high - low) / 2


@dataclasses.dataclass(frozen=True)
class TrimmedMean(EntryWise):
    """Mean of each entry without its largest and its smallest values (arXiv 1803.01498, Definition 2).

    Attributes:
        trim: Share of an entry's values that is left out at each end. The number of these values is rounded down.
    """

    trim: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.trim < 0.5:
            raise InputError.of("rule.trim", self.trim, "a number in [0, 0.5)")

    def middle(self, values: Tensor, sent: Tensor) -> Tensor:
        """Returns the mean of the remaining values of each entry."""
        out = (self.trim * sent).floor().long()
        rank = torch.arange(len(values)).view(-1, *(1,) * sent.dim())
        inside = (rank >= out) & (rank < sent - out)
        return torch.where(inside, values, 0.0).sum(dim=0) / inside.sum(dim=0).clamp(min=1)


@dataclasses.dataclass(frozen=True)
class Krum(Rule):
    """Krum: the single update whose change is nearest to the other changes (Blanchard et al., NeurIPS 2017).

        s(i) = sum of the squared distances from change i to its n - f - 2 nearest changes

    n is the number of updates, and f is the number of updates that may be hostile. The result is the update with the
    smallest s; ties go to the first client. A change is the vector of all differences between an update and the values
    that its job was sent. A change has the entries of all tensors at the initial rank, so all changes have the same
    length. Components that the job didn't send back count as unchanged.

    Attributes:
        weights: Always ``uniform``.
        hostile: Share of the updates that may be hostile. f is this share of n, rounded down.
    """

    weighings: ClassVar[tuple[str, ...]] = UNIFORM
    robust: ClassVar[bool] = True
    one_group: ClassVar[str] = "a group may have fewer than 2 f + 3 updates"

    weights: str = "uniform"
    hostile: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hostile < 0.5:
            raise InputError.of("rule.hostile", self.hostile, "a number in [0, 0.5)")

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Returns the mean of the trusted updates.

        Raises:
            InputError: There are fewer than 2 f + 3 updates.
        """
        chosen = sorted(self.trusted(view, updates))
        return Mean(self.weights).combine(view, gid, [updates[i] for i in chosen])

    def trusted(self, view: View, updates: Sequence[Update]) -> list[int]:
        """Returns the positions of the trusted updates (those with the smallest s), smallest s first.

        Raises:
            InputError: There are fewer than 2 f + 3 updates.
        """
        self.check(len(updates))
        n, f = len(updates), self._hostile(len(updates))
        names = sorted({name for update in updates for name in update.tensors})
        changes = torch.stack([change(view, update, names) for update in updates])
        distances = torch.cdist(changes, changes, compute_mode="donot_use_mm_for_euclid_dist").square()
        distances.fill_diagonal_(math.inf)  # an update isn't its own neighbour
        scores = distances.sort(dim=1).values[:, : n - f - 2].sum(dim=1).tolist()
        return sorted(range(n), key=lambda i: (scores[i], i))[: self.count(n, f)]

    def check(self, updates: int) -> None:
        """Refuses fewer than 2 f + 3 updates.

        Raises:
            InputError: There are fewer than 2 f + 3 updates.
        """
        f = self._hostile(updates)
        if updates < 2 * f + 3:
            why = f"a round may have {updates} updates, of which {f} are hostile"
            raise InputError.of("rule.hostile", self.hostile, f"at least {2 * f + 3} updates of a round", why)

    def _hostile(self, n: int) -> int:
        return math.floor(self.hostile * n)

    def count(self, n: int, f: int) -> int:
        """Returns the number of updates to trust, given n updates of which f may be hostile."""
        return 1


@dataclasses.dataclass(frozen=True)
class MultiKrum(Krum):
    """Multi-Krum: the mean of the n - f updates with the smallest Krum scores s (Blanchard et al., NeurIPS 2017)."""

    def count(self, n: int, f: int) -> int:
        """Returns the number of updates to trust, given n updates of which f may be hostile."""
        return n - f


@dataclasses.dataclass(frozen=True)
class NormBound(Mean):
    """Mean of updates whose changes are scaled down to a maximal norm (arXiv 1911.07963, norm thresholding).

        w_k <- w_t,k + (w_k - w_t,k) min(1, bound / |w_k - w_t,k|)

    w_t,k are the values that client k was sent, and w_k are the values that it sends. The Euclidean norm is taken over
    all tensors of an update together. Like the mean, the rule only needs sums over clients.

    Attributes:
        bound: Maximal norm of a change.
    """

    robust: ClassVar[bool] = True

    bound: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.bound < math.inf:
            raise InputError.of("rule.bound", self.bound, "a number > 0")

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds the update to the totals. A change whose norm exceeds the bound is first scaled down to the bound."""
        norm = float(change(view, update, sorted(update.tensors)).norm())
        if norm > self.bound:
            tensors = {name: self._scaled(view, update, name, self.bound / norm) for name in update.tensors}
            update = dataclasses.replace(update, tensors=tensors)
        super().summand(view, update, totals)

    def _scaled(self, view: View, update: Update, name: str, factor: float) -> Tensor:
        start = view.layout.take(name, view.sent(update.job, name), update.kept).double()
        return (start + factor * (update.tensors[name].double() - start)).to(update.tensors[name].dtype)


def change(view: View, update: Update, names: Sequence[str]) -> Tensor:
    """Returns the difference between an update and the values that its job was sent.

    Args:
        view: View of the round.
        update: The update.
        names: Names of tensors on the server. A tensor that isn't in the update counts as unchanged.

    Returns:
        The differences of all entries at the initial rank, concatenated over the tensors. Shape (entries,),
        float64.
    """
    parts = []
    for name in names:
        start = view.sent(update.job, name)
        sent = update.tensors.get(name)
        after = start if sent is None else view.layout.put(name, start, update.kept, sent)
        parts.append((after.double() - start.double()).reshape(-1))
    return torch.cat(parts)
