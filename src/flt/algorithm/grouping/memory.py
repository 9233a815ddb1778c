"""Memory of a clustering: what the server keeps of the changes of earlier rounds.

Jobs are then clustered by the changes of several rounds (our reconstruction). Rounds with clearly separated tasks
outweigh rounds whose changes are noise or specific to clients. The clarity of a round is the silhouette of the clusters
that the changes of this round alone give.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse
from torch import Tensor

from flt.algorithm.grouping.features import unit
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import JobId

WIDEST = 1 << 20
_PROJECTION = 1  # stream of the random generator; the clustering itself has the stream without a number
_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
_SIDE_BY_SIDE = "side_by_side"

Vectors = Mapping[JobId, np.ndarray]


class Memory(abc.ABC):
    """Memory of the changes of each job on the server: one vector, float32, of the same length for all jobs."""

    @abc.abstractmethod
    def after(self, view: View, before: Vectors, changes: Vectors, clarity: np.float32) -> dict[JobId, np.ndarray]:
        """Returns the memory after a round. The features of a job are its vector in this memory, scaled to length 1.

        Args:
            view: View of the state before the aggregation.
            before: Memory before the round.
            changes: Centred changes (features,) of the jobs that are clustered in the round.
            clarity: Silhouette of the clusters that the round's changes alone give.
        """


class Sum(Memory):
    """Sum of a job's changes, each multiplied by the squared clarity of its round."""

    def after(self, view: View, before: Vectors, changes: Vectors, clarity: np.float32) -> dict[JobId, np.ndarray]:
        """Adds the round's changes to the sums."""
        weighted = {job: change * clarity**2 for job, change in changes.items()}
        return {**before, **{job: row + before[job] if job in before else row for job, row in weighted.items()}}


@dataclasses.dataclass(frozen=True)
class SideBySide(Memory):
    """Changes of a job in different rounds, side by side, so that only changes of the same round are compared.

    ::

        x_i = [c_1 u_i1, c_2 u_i2, ..., c_t u_it]    u_is: change of job i in round s, scaled to length 1
                                                     c_s: clarity of round s; u_is = 0 if job i was absent in round s

    The cosine of two jobs is thus a weighted mean of the cosines of their changes in the rounds in which both took
    part, times a factor below 1 if one of them was absent in other rounds.

    Attributes:
        rounds: Number of the most recent rounds that are kept, or None for all rounds. Rounds in which no update is
            clustered aren't counted.
        width: Number of numbers W to which x_i is projected at random, or None for no projection. If ``rounds`` is
            None, the whole x_i is projected to W numbers. Otherwise the part of each round is projected to W numbers.
    """

    rounds: int | None
    width: int | None

    def after(self, view: View, before: Vectors, changes: Vectors, clarity: np.float32) -> dict[JobId, np.ndarray]:
        """Appends the round's part to each job's vector, or adds its projection."""
        parts = unit(np.stack(list(changes.values()))) * clarity
        if self.width is not None:
            parts = projected(parts, self.width, view.generator(_PROJECTION))
        new = dict(zip(changes, parts.astype(np.float32), strict=True))
        if self.rounds is None:
            return {**before, **{job: row + before[job] if job in before else row for job, row in new.items()}}
        absent = np.zeros(parts.shape[1], np.float32)
        length = len(next(iter(before.values()), ()))
        kept = min(length, (self.rounds - 1) * len(absent))
        unknown = np.zeros(length, np.float32)
        return {job: np.concatenate([before.get(job, unknown)[length - kept :], new.get(job, absent)])
                for job in sorted({*before, *new})}  # fmt: skip


def projected(rows: np.ndarray, width: int, generator: np.random.Generator) -> np.ndarray:
    """Projects rows (n, d) at random to (n, width) by a count sketch (Charikar et al., 2002).

    Each feature is added, with a random sign, to one of ``width`` sums. The expected inner product of two projected
    rows is the inner product of the rows. If two rows have length 1 and no feature dominates, its standard deviation is
    about 1 / sqrt(width). The cost is O(n d), whatever the width.

    Example:
        >>> projected(np.array([[3.0, 4.0]]), 1, np.random.default_rng(1)).tolist()
        [[1.0]]
    """
    features = rows.shape[1]
    sums = generator.integers(width, size=features)
    signs = generator.integers(2, size=features) * 2.0 - 1
    return np.asarray(rows @ scipy.sparse.csr_array((signs, (np.arange(features), sums)), shape=(features, width)))


def memory_of(value: bool | int | str, rounds: int | None, width: int | None) -> Memory | None:
    """Returns the memory for the settings ``memory``, ``memory_rounds`` and ``memory_width`` of a clustering.

    Returns:
        None if the clustering has no memory.

    Raises:
        InputError: A value isn't allowed, or the memory would grow with every round.
    """
    word = str(value).lower()
    if word not in (*_TRUE, *_FALSE, _SIDE_BY_SIDE):
        raise InputError.of("grouping.memory", value, ("false", "true", _SIDE_BY_SIDE))
    if rounds is not None and word != _SIDE_BY_SIDE:
        raise InputError.of("grouping.memory_rounds", rounds, f"null, or grouping.memory={_SIDE_BY_SIDE}")
    if rounds is not None and rounds < 1:
        raise InputError.of("grouping.memory_rounds", rounds, "an integer >= 1, or null")
    if width is not None and not 1 <= width <= WIDEST:
        raise InputError.of("grouping.memory_width", width, f"an integer from 1 to {WIDEST}, or null")
    if word != _SIDE_BY_SIDE:
        return Sum() if word in _TRUE else None
    if rounds is width is None:
        why = "the memory would grow with every round"
        raise InputError.of("grouping.memory_width", "null", "an integer, unless memory_rounds is one", why)
    return SideBySide(rounds, width)


def vectors(tensors: Mapping[JobId, Tensor]) -> dict[JobId, np.ndarray]:
    """Returns the memory in a state as arrays."""
    return {job: vector.numpy() for job, vector in tensors.items()}
