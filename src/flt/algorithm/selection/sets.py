"""Functions that draw random sets of components. A component is given as an id, or as (layer, id)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from flt.protocol.job import Job

_Component = TypeVar("_Component", int, tuple[str, int])


def deal(
    active: Sequence[_Component], job: Job, cohort: Sequence[Job], generator: np.random.Generator, layers: int = 1
) -> tuple[_Component, ...]:
    """Deals shuffled components to the cohort's jobs like cards, and returns the components of one job.

    The jobs get consecutive pieces of one shuffled list, which is repeated if it is too short. Together, the jobs thus
    cover as many components as possible.

    Args:
        active: Active components.
        job: Job whose components are returned. It gets ``layers`` * rank components, or all if there are fewer.
        cohort: All jobs of the round, in any order.
        generator: NumPy generator. The calls for all jobs of a round must pass a generator in the same state.
        layers: Number of layers to which the components belong.

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


def explored(
    ranking: Sequence[_Component], count: int, share: float, generator: np.random.Generator
) -> tuple[_Component, ...]:
    """Returns the best components of a ranking, with some of them replaced by random components that rank lower.

    The random components replace the lowest-ranked components of the set. Their number is floor(share * count + u) with
    u uniform in [0, 1). The mean of this number is share * count, so even a small set gets random components in some
    rounds.

    Args:
        ranking: Active components, best first.
        count: Size of the set, at most ``len(ranking)``.
        share: Expected share of random components in the set, in [0, 1).
        generator: NumPy generator for this job and these components.

    Example:
        >>> import numpy as np
        >>> explored((3, 1, 0, 2), 2, 0.5, np.random.default_rng(0))
        (0, 3)
    """
    size = math.floor(share * count + generator.random())
    drawn: list[_Component] = [ranking[count + i] for i in generator.permutation(len(ranking) - count)[:size]]
    return tuple(sorted(list(ranking[: count - len(drawn)]) + drawn))
