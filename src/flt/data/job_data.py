"""Data of jobs whose examples are split into training and held-out examples only when they are needed."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from flt.data import held_out as splitting
from flt.data.clients import JobData, JobTask

_KEPT = 1  # part of a random seed, so that it differs from other seeds


def job_data(
    dataset: Dataset,
    strata: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    share: NDArray[np.int64],
    held_out: float,
    seed: int,
    task: str = "",
    head: str = "",
    names: tuple[str, ...] = (),
    kept: float = 1.0,
) -> JobData:
    """Returns the data of one job, given the job's share of a data set. A stratified part of the share is held out.

    The held-out part is drawn only when a position or a label count of the job is first read. With many clients, most
    clients are never in a cohort, and their draws would be wasted.

    Args:
        dataset: Data set that contains the examples of all clients.
        strata: Stratum of every example of the data set, usually the example's class. Shape (n,). The held-out part is
            stratified by these strata.
        labels: Class of every example of the data set, shape (n,), for ``label_counts``. None if classes aren't known.
        share: Positions of the job's examples in the data set.
        held_out: Fraction of the share that is held out.
        seed: Seed of the draw.
        task: Name of the job's task; empty if the job has no task.
        head: Name of the job's head if jobs have different heads, else empty.
        names: Name of each class. Empty if the classes have no names.
        kept: Fraction of the training examples that the job keeps.
    """
    splitting.check_fraction(held_out)
    return UnsplitJobData.of(dataset, Share(share, strata, labels, held_out, seed, kept), task, head, names)


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A job's examples before they are split into training and held-out examples.

    Attributes:
        positions: Positions of the job's examples in the data set.
        strata: Stratum of every example of the data set, shape (n,). The held-out part is stratified by these strata.
        labels: Class of every example of the data set, shape (n,), for ``label_counts``. None if classes aren't known.
        held_out: Fraction of the positions that is held out.
        seed: Seed of the draw.
        kept: Fraction of the training examples that is kept, at least one. The examples of a smaller fraction are among
            those of a larger one.
    """

    positions: NDArray[np.int64]
    strata: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    held_out: float
    seed: int
    kept: float = 1.0

    @property
    def train_size(self) -> int:
        """Number of training examples after the split."""
        return self._kept(len(self.positions) - splitting.held_out_size(len(self.positions), self.held_out))

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws the held-out examples. Returns the positions of the training examples and of the held-out examples."""
        train, held_out = splitting.split(self.positions, self.strata, self.held_out, self.seed)
        if self.kept < 1:
            order = np.random.default_rng([self.seed, len(train), _KEPT]).permutation(len(train))
            train = np.sort(train[order[: self._kept(len(train))]])
        return train, held_out

    def _kept(self, examples: int) -> int:
        return examples if self.kept == 1 else min(examples, max(1, round(self.kept * examples)))

    def label_counts(self, train: NDArray[np.int64]) -> tuple[int, ...]:
        """Counts the training examples of each class. Returns an empty tuple if the classes aren't known."""
        if self.labels is None:
            return ()
        return tuple(np.bincount(self.labels[train], minlength=int(self.labels.max()) + 1).tolist())


@dataclasses.dataclass(frozen=True, slots=True)
class JointShare:
    """Shares of several data sets, one data set after another, before they are split.

    Each share is split by itself. A job with several tasks therefore trains on the examples on which a job for each of
    its tasks would train.

    Attributes:
        shares: A client's share of each data set.
        starts: For each data set, the position of its first example in the joint data set.
        firsts: For each data set, the number of its class 0 in ``label_counts``.
        classes: Number of classes in ``label_counts``.
    """

    shares: tuple[Share, ...]
    starts: tuple[int, ...]
    firsts: tuple[int, ...]
    classes: int

    @property
    def train_size(self) -> int:
        """Number of training examples after the split."""
        return sum(share.train_size for share in self.shares)

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws the held-out examples. Returns the positions of the training examples and of the held-out examples."""
        parts = [share.split() for share in self.shares]
        train, held_out = (
            np.concatenate([part[which] + start for part, start in zip(parts, self.starts, strict=True)])
            for which in (0, 1)
        )
        return train, held_out

    def label_counts(self, train: NDArray[np.int64]) -> tuple[int, ...]:
        """Counts the training examples of each class."""
        counts = np.zeros(self.classes, dtype=np.int64)
        for share, start, first in zip(self.shares, self.starts, self.firsts, strict=True):
            own = train[(train >= start) & (train < start + len(share.strata))] - start
            found = np.bincount(share.strata[own])
            counts[first : first + len(found)] += found
        return tuple(counts.tolist())


class UnsplitJobData(JobData):
    """Data of a job whose held-out examples are drawn only when positions or label counts are first read.

    The fields ``train``, ``held_out`` and ``label_counts`` are cached properties. The value of such a field is computed
    when the field is first read, unless ``but`` or ``dataclasses.replace`` has set the value.
    """

    share: Share | JointShare
    """The job's examples before the split."""

    @classmethod
    def of(
        cls, dataset: Dataset, share: Share | JointShare, task: str = "", head: str = "", names: tuple[str, ...] = (),
        parts: tuple[JobTask, ...] = (),
    ) -> UnsplitJobData:  # fmt: skip
        """Creates an instance without a call of ``__init__``, which would need the positions."""
        job = cls.__new__(cls)
        about = {"task": task, "head": head, "rounds": (1, None), "label_names": names, "parts": parts}
        job.__dict__.update(dataset=dataset, share=share, **about)
        return job

    @functools.cached_property
    def _split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.share.split()

    @functools.cached_property
    def train(self) -> np.ndarray:
        """Positions of the training examples, shape (n,)."""
        return self._split[0]

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """Positions of the held-out examples, shape (m,)."""
        return self._split[1]

    @functools.cached_property
    def label_counts(self) -> tuple[int, ...]:
        """Number of training examples of each class; empty if the classes aren't known."""
        return self.share.label_counts(self._split[0])

    @property
    def examples(self) -> int:
        """Number of training examples of the job. Reading this number doesn't split the share."""
        return len(self.train) if "train" in self.__dict__ else self.share.train_size
