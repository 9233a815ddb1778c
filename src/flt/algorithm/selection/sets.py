"""Sets of pairs, dealt and drawn: pure functions of pairs, given by their ids or with their layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from flt.protocol.job import Job

_P = TypeVar("_P", int, tuple[str, int])


def deal(
    active: Sequence[_P], job: Job, cohort: Sequence[Job], generator: np.random.Generator, layers: int = 1
) -> tuple[_P, ...]:
    """Deals shuffled pairs to the cohort's jobs in turn, like cards, and returns this job's hand.

    Args:
        active: Active components.
        job: The job to deal to; its hand has ``layers`` times its rank, and at most all of them.
        cohort: All jobs of the round; the order in which they are listed doesn't matter.
        generator: A NumPy generator in the same state for every job of the round.
        layers: How many layers the pairs are of.

    Example:
        >>> import numpy as np
        >>> jobs = [Job(0, 0, 2), Job(1, 0, 2)]
        >>> hands = [deal((0, 1, 2, 3), job, jobs, np.random.default_rng(0)) for job in jobs]
        >>> sorted(hands[0] + hands[1])
        [0, 1, 2, 3]
    """
    shuffled = [active[i] for i in generator.permutation(len(active))]
    before = sum(min(layers * other.rank, len(active)) for other in cohort if other.id < job.id)
    hand = min(layers * job.rank, len(active))
    return tuple(sorted(shuffled[(before + i) % len(active)] for i in range(hand)))


def explored(ranking: Sequence[_P], count: int, share: float, generator: np.random.Generator) -> tuple[_P, ...]:
    """The first pairs of a ranking, but for a share that is drawn from those behind them.

    The share is rounded to floor(share * count + u) with u uniform in [0, 1): as many as it says on average, so sets of
    two pairs explore too. The lowest of the top make room.

    Args:
        ranking: Living pairs, the best first.
        count: Size of the set, at most ``len(ranking)``.
        share: Of the set that is drawn, in [0, 1).
        generator: A NumPy generator of this job and these pairs.

    Example:
        >>> import numpy as np
        >>> explored((3, 1, 0, 2), 2, 0.5, np.random.default_rng(0))
        (0, 3)
    """
    wanted = math.floor(share * count + generator.random())
    drawn: list[_P] = [ranking[count + i] for i in generator.permutation(len(ranking) - count)[:wanted]]
    return tuple(sorted(list(ranking[: count - len(drawn)]) + drawn))
