"""Selection: which pairs a job holds and which of these it trains (HAFL, arXiv 2411.06581)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback

from flt.callbacks.local import FrozenPairs, LocalFit
from flt.errors import InputError
from flt.layout import PAIRS
from flt.messages import Ids
from flt.view import Job, View

Pairs = dict[str, Ids]
ORDERS = ("score", "first", "random")


@dataclasses.dataclass(frozen=True)
class All:
    """Every job holds and trains all living pairs: what FedAvg on LoRA does."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[Pairs, Pairs]:
        """(held, kept) pair ids of a job."""
        return dict(view.state.alive), dict(view.state.alive)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: nothing."""
        return []

    def check(self, ranks: Sequence[int], rank: int) -> None:
        """Refuses clients that can't hold all pairs.

        Raises:
            InputError: A client's rank is below the adapter's.
        """
        if min(ranks) < rank:
            why = f"a client of rank {min(ranks)} can't train all {rank} pairs"
            raise InputError.of("selection", "all", "truncate or freeze where ranks differ", why)


@dataclasses.dataclass(frozen=True)
class _Top:
    """The top r_k living pairs of each layer.

    Attributes:
        by: ``score``: the highest importance; while all scores of a layer tie, the sets are drawn at random and spread
            over the cohort, so that as many pairs as the ranks allow are trained by somebody (our reconstruction).
            ``first``: the lowest ids, as HetLoRA does. ``random``: drawn anew each round.
        explore: Share, in [0, 1), of a job's r_k pairs per layer that are drawn at random from outside its top, in the
            place of the lowest of it (our reconstruction). A pair that nobody has measured keeps the score 0, so
            without this the sets hardly change after round 1.
    """

    by: str = "score"
    explore: float = 0.0

    needs: ClassVar[tuple[str, ...]] = PAIRS

    def __post_init__(self) -> None:
        if self.by not in ORDERS:
            raise InputError.of("selection.by", self.by, ORDERS)
        if not 0 <= self.explore < 1:
            raise InputError.of("selection.explore", self.explore, "a number in [0, 1)")
        if self.explore and self.by != "score":
            raise InputError.of("selection.explore", self.explore, f"0 with selection.by={self.by}")

    def check(self, ranks: Sequence[int], rank: int) -> None:
        """Any ranks go."""

    def _top(self, view: View, job: Job, cohort: Sequence[Job]) -> Pairs:
        scores = view.group(view.state.group_of(job.id)).scores
        alive = view.state.alive
        return {name: self._layer(view, job, cohort, i, scores[name], alive[name]) for i, name in enumerate(alive)}

    def _layer(self, view: View, job: Job, cohort: Sequence[Job], layer: int, scores: torch.Tensor, alive: Ids) -> Ids:
        count = min(job.rank, len(alive))
        if self.by == "first":
            return alive[:count]
        known = scores[list(alive)]
        if self.by == "random" or bool((known == known[:1]).all()):
            return deal(alive, count, job, cohort, view.generator(layer))
        ranking = [alive[i] for i in torch.sort(known, descending=True, stable=True).indices.tolist()]
        if not self.explore:
            return tuple(sorted(ranking[:count]))
        return explored(ranking, count, self.explore, view.generator(layer, *job.id))


@dataclasses.dataclass(frozen=True)
class Freeze(_Top):
    """A job holds all living pairs, computes with all of them, and trains and sends its top r_k."""

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[Pairs, Pairs]:
        """(held, kept) pair ids of a job."""
        return dict(view.state.alive), self._top(view, job, cohort)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: the pairs that aren't kept stand still."""
        return [FrozenPairs(fit)]


@dataclasses.dataclass(frozen=True)
class Truncate(_Top):
    """A job holds, trains and sends its top r_k only: its model is smaller than the one that the server has."""

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[Pairs, Pairs]:
        """(held, kept) pair ids of a job."""
        top = self._top(view, job, cohort)
        return top, top

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: nothing, since the model holds what it trains."""
        return []


def deal(alive: Ids, count: int, job: Job, cohort: Sequence[Job], generator: np.random.Generator) -> Ids:
    """Deals shuffled pairs to the cohort's jobs in turn, like cards, and returns this job's hand.

    Args:
        alive: Living pair ids.
        count: Size of this job's hand, at most ``len(alive)``.
        job: The job to deal to.
        cohort: All jobs of the round; the order in which they are listed doesn't matter.
        generator: A NumPy generator in the same state for every job of the round.

    Example:
        >>> import numpy as np
        >>> jobs = [Job(0, 0, 2), Job(1, 0, 2)]
        >>> hands = [deal((0, 1, 2, 3), 2, job, jobs, np.random.default_rng(0)) for job in jobs]
        >>> sorted(hands[0] + hands[1])
        [0, 1, 2, 3]
    """
    shuffled = [alive[i] for i in generator.permutation(len(alive))]
    before = sum(min(other.rank, len(alive)) for other in cohort if other.id < job.id)
    return tuple(sorted(shuffled[(before + i) % len(alive)] for i in range(count)))


def explored(ranking: Sequence[int], count: int, share: float, generator: np.random.Generator) -> Ids:
    """The first pairs of a ranking, but for a share that is drawn from those behind them.

    The share is rounded to floor(share * count + u) with u uniform in [0, 1): as many as it says on average, so sets of
    two pairs explore too. The lowest of the top make room.

    Args:
        ranking: Living pair ids, the best first.
        count: Size of the set, at most ``len(ranking)``.
        share: Of the set that is drawn, in [0, 1).
        generator: A NumPy generator of this job and layer.

    Example:
        >>> import numpy as np
        >>> explored((3, 1, 0, 2), 2, 0.5, np.random.default_rng(0))
        (0, 3)
    """
    wanted = math.floor(share * count + generator.random())
    drawn = generator.permutation(ranking[count:])[:wanted].tolist()
    return tuple(sorted([*ranking[: count - len(drawn)], *drawn]))
