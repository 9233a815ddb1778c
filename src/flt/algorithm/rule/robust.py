"""Rules that a minority of hostile clients can't move far, over adapter updates.

    median, trimmed_mean     each entry by itself (Yin et al., arXiv 1803.01498)
    krum, multi_krum         whole updates, by their distances (Blanchard et al., NeurIPS 2017)
    norm_bound               the mean of updates no longer than a bound (Sun et al., arXiv 1911.07963)

All but the last weigh clients alike: a client that may say how many examples it has could say a million.
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
    """Each entry over the clients that sent it, by rank among their values; listwise, since ranks aren't sums.

    Attributes:
        weights: Always ``uniform``.
    """

    weighings: ClassVar[tuple[str, ...]] = UNIFORM
    adds: ClassVar[bool] = False  # a value of any size is one more to sort

    weights: str = "uniform"

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Sorts each entry's values; one that nobody sent is what the group begins with."""
        new = dict(view.group(gid).weights)
        for name in sorted({name for update in updates for name in update.tensors}):
            old = new[name] if name in new else view.frozen[name]
            senders = [update for update in updates if name in update.tensors]
            values = torch.stack([self._column(view, name, old, update) for update in senders]).sort(dim=0).values
            sent = values.isfinite().sum(dim=0)
            new[name] = torch.where(sent > 0, self.middle(values, sent), old.double()).to(old.dtype)
        return Combined(new)

    def _column(self, view: View, name: str, old: Tensor, update: Update) -> Tensor:
        """What one client says of each entry; infinite where it didn't send it, so that it is sorted behind."""
        return view.layout.put(name, torch.full_like(old, math.inf), update.kept, update.tensors[name]).double()

    @abc.abstractmethod
    def middle(self, values: Tensor, sent: Tensor) -> Tensor:
        """The answer of each entry.

        Args:
            values: Ascending along the first axis (clients, ...), infinite behind the last that was sent.
            sent: How many sent each entry (...); the answer of one that nobody sent isn't read.
        """


@dataclasses.dataclass(frozen=True)
class Median(EntryWise):
    """The median of each entry: of an even number the mean of the middle two (arXiv 1803.01498, Definition 1)."""

    def middle(self, values: Tensor, sent: Tensor) -> Tensor:
        """The median (...)."""
        last = (sent - 1).clamp(min=0)
        low, high = (values.gather(0, at.unsqueeze(0)).squeeze(0) for at in (last // 2, (last + 1) // 2))
        return low + (high - low) / 2


@dataclasses.dataclass(frozen=True)
class TrimmedMean(EntryWise):
    """The mean of each entry without its largest and its smallest values (arXiv 1803.01498, Definition 2).

    Attributes:
        trim: The share of the values that is left out at either end, rounded down.
    """

    trim: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.trim < 0.5:
            raise InputError.of("rule.trim", self.trim, "a number in [0, 0.5)")

    def middle(self, values: Tensor, sent: Tensor) -> Tensor:
        """The mean (...) of what is left."""
        out = (self.trim * sent).floor().long()
        rank = torch.arange(len(values)).view(-1, *(1,) * sent.dim())
        inside = (rank >= out) & (rank < sent - out)
        return torch.where(inside, values, 0.0).sum(dim=0) / inside.sum(dim=0).clamp(min=1)


@dataclasses.dataclass(frozen=True)
class Krum(Rule):
    """The one update that is nearest to its neighbours (Blanchard et al., NeurIPS 2017).

        s(i) = sum of the squared distances from change i to the n - f - 2 changes nearest to it
        the answer is the update with the least s; of equals that of the first client

    A change is what an update says minus what its job was sent, over all tensors, at the initial rank: pairs that
    weren't sent haven't changed.

    Attributes:
        weights: Always ``uniform``.
        hostile: The share of a round's clients that may be hostile: f is this share of n, rounded down.
    """

    weighings: ClassVar[tuple[str, ...]] = UNIFORM
    one_group: ClassVar[str] = "a group may have fewer than 2 f + 3 updates"

    weights: str = "uniform"
    hostile: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hostile < 0.5:
            raise InputError.of("rule.hostile", self.hostile, "a number in [0, 0.5)")

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """The mean of those that are trusted.

        Raises:
            InputError: There are fewer than 2 f + 3 updates.
        """
        chosen = sorted(self.trusted(view, updates))
        return Mean(self.weights).combine(view, gid, [updates[i] for i in chosen])

    def trusted(self, view: View, updates: Sequence[Update]) -> list[int]:
        """Which of the updates count.

        Raises:
            InputError: There are fewer than 2 f + 3 of them.
        """
        self.check(len(updates))
        n, f = len(updates), self._hostile(len(updates))
        names = sorted({name for update in updates for name in update.tensors})
        changes = torch.stack([change(view, update, names) for update in updates])
        apart = torch.cdist(changes, changes, compute_mode="donot_use_mm_for_euclid_dist").square()
        apart.fill_diagonal_(math.inf)  # an update is no neighbour of its own
        scores = apart.sort(dim=1).values[:, : n - f - 2].sum(dim=1).tolist()
        return sorted(range(n), key=lambda i: (scores[i], i))[: self.count(n, f)]

    def check(self, updates: int) -> None:
        """Refuses fewer than 2 f + 3."""
        f = self._hostile(updates)
        if updates < 2 * f + 3:
            why = f"a round may have {updates} updates, of which {f} are hostile"
            raise InputError.of("rule.hostile", self.hostile, f"at least {2 * f + 3} updates of a round", why)

    def _hostile(self, n: int) -> int:
        return math.floor(self.hostile * n)

    def count(self, n: int, f: int) -> int:
        """How many of n updates count, where f may be hostile."""
        return 1


@dataclasses.dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the n - f updates with the least scores (Blanchard et al., NeurIPS 2017, m = n - f)."""

    def count(self, n: int, f: int) -> int:
        """How many of n updates count, where f may be hostile."""
        return n - f


@dataclasses.dataclass(frozen=True)
class NormBound(Mean):
    """The mean of updates whose change is no longer than a bound (arXiv 1911.07963, norm thresholding).

        w_k <- w_t,k + (w_k - w_t,k) min(1, bound / |w_k - w_t,k|)

    The norm is that of all tensors of an update together. A sum over clients as the mean is.

    Attributes:
        bound: Euclidean.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.bound < math.inf:
            raise InputError.of("rule.bound", self.bound, "a number > 0")

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds the update, shortened where it is too long."""
        norm = float(change(view, update, sorted(update.tensors)).norm())
        if norm > self.bound:
            tensors = {name: self._shortened(view, update, name, self.bound / norm) for name in update.tensors}
            update = dataclasses.replace(update, tensors=tensors)
        super().summand(view, update, totals)

    def _shortened(self, view: View, update: Update, name: str, factor: float) -> Tensor:
        start = view.layout.take(name, view.sent(update.job, name), update.kept).double()
        return (start + factor * (update.tensors[name].double() - start)).to(update.tensors[name].dtype)


def change(view: View, update: Update, names: Sequence[str]) -> Tensor:
    """What an update changes of what its job was sent.

    Args:
        view: Of the round.
        update: Whose.
        names: Tensors in the server's names; those that the job doesn't have haven't changed.

    Returns:
        All entries at the initial rank, one after the other (n,), float64.
    """
    parts = []
    for name in names:
        start = view.sent(update.job, name)
        sent = update.tensors.get(name)
        after = start if sent is None else view.layout.put(name, start, update.kept, sent)
        parts.append((after.double() - start.double()).reshape(-1))
    return torch.cat(parts)
