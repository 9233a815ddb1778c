"""Division of any map-style data set among clients (``flt.partition``)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from flt.core.errors import InputError
from flt.data import partition as partitioners
from flt.data.clients import ClientSpec, JobData

MOST_CLASSES = 10_000
"""Limit of class numbers. A column that contains an integer >= this limit is treated as ids, not as classes."""


def partition(
    dataset: Any,
    by: str | None = "label",
    alpha: float | None = None,
    clients: int | None = 10,
    *,
    shards: int | None = None,
    held_out: float = 0.2,
    min_examples: int = 2,
    seed: int = 0,
    label: str = "label",
) -> list[ClientSpec]:
    """Divides a data set among clients.

    The main arguments choose the method:

    ================================  ========================================================================
    ``by="label", alpha=0.5``         the examples of each label are divided by Dirichlet shares
    ``by="label", shards=2``          sorted by label and cut into shards, two shards per client
    ``by=None, alpha=0.5``            random examples; the sizes are Dirichlet shares
    ``by=None``                       random examples, equal sizes (iid)
    ``by="author"``                   by the column's values; with ``clients=None``, one client per value
    ================================  ========================================================================

    Args:
        dataset: A ``datasets.Dataset``, or any map-style data set whose items are (input, label) or dicts.
        by: Column whose values decide the division. If None, no column is used. If items are (input, label), the value
            ``"label"`` stands for their second element.
        alpha: Concentration of the Dirichlet distribution. The smaller alpha is, the more unequal are the clients.
            If None, no Dirichlet distribution is used.
        clients: Number of clients. If None, there is one client for each value of the column.
        shards: Number of shards per client. If None, the data set isn't cut into shards.
        held_out: Share of a client's examples that is held out. The client's model is evaluated on these examples.
        min_examples: Smallest number of examples of a client if labels are divided by Dirichlet shares.
        seed: Seed of the partition.
        label: Column of the labels. For items (input, label), the label is the second element. Labels are used to count
            each client's examples of each class. Nothing is counted if (a) the column doesn't exist, (b) its values
            aren't class numbers from 0 on, or (c) the data set has no columns and ``by`` differs from ``label``. In
            case (c), all examples would have to be read for the count.

    Raises:
        InputError: There are too few examples for the clients, or the column doesn't exist.

    Example:
        >>> clients = partition([(float(i), i % 2) for i in range(20)], by="label", alpha=1.0, clients=2)
        >>> sum(len(client.data[0].train) + len(client.data[0].held_out) for client in clients)
        20
    """
    size = len(dataset)
    values = np.zeros(size, dtype=np.int64) if by is None else _values(dataset, by)
    codes = np.unique(values, return_inverse=True)[1]
    if shards is not None:
        parts = partitioners.shards(codes, clients or 1, shards, seed)
    elif alpha is not None and by is None:
        parts = partitioners.quantity(size, clients or 1, alpha, seed)
    elif alpha is not None:
        parts = partitioners.dirichlet(codes, clients or 1, alpha, seed, min_examples)
    elif by is None:
        parts = partitioners.iid(size, clients or 1, seed)
    else:
        parts = partitioners.by_column(values, clients, seed)
    labels = _labels(dataset, by, values, label)
    return [ClientSpec(i, (job_data(dataset, codes, labels, share, held_out, seed),)) for i, share in enumerate(parts)]


def job_data(
    dataset: Dataset,
    strata: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    share: NDArray[np.int64],
    held_out: float,
    seed: int,
    task: str = "",
    head: str = "",
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
    """
    partitioners.check_fraction(held_out)
    return UnsplitJobData.of(dataset, Share(share, strata, labels, held_out, seed), task, head)


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A job's examples before they are split into training and held-out examples.

    Attributes:
        positions: Positions of the job's examples in the data set.
        strata: Stratum of every example of the data set, shape (n,). The held-out part is stratified by these strata.
        labels: Class of every example of the data set, shape (n,), for ``label_counts``. None if classes aren't known.
        held_out: Fraction of the positions that is held out.
        seed: Seed of the draw.
    """

    positions: NDArray[np.int64]
    strata: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    held_out: float
    seed: int

    @property
    def train_size(self) -> int:
        """Number of training examples after the split."""
        return len(self.positions) - partitioners.held_out_size(len(self.positions), self.held_out)

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws the held-out examples. Returns the positions of the training examples and of the held-out examples."""
        return partitioners.split(self.positions, self.strata, self.held_out, self.seed)

    def label_counts(self, train: NDArray[np.int64]) -> tuple[int, ...]:
        """Counts the training examples of each class. Returns an empty tuple if the classes aren't known."""
        if self.labels is None:
            return ()
        return tuple(np.bincount(self.labels[train], minlength=int(self.labels.max()) + 1).tolist())


class UnsplitJobData(JobData):
    """Data of a job whose held-out examples are drawn only when positions or label counts are first read.

    The fields ``train``, ``held_out`` and ``label_counts`` are cached properties. The value of such a field is computed
    when the field is first read, unless ``but`` or ``dataclasses.replace`` has set the value.
    """

    share: Share
    """The job's examples before the split."""

    @classmethod
    def of(cls, dataset: Dataset, share: Share, task: str = "", head: str = "") -> UnsplitJobData:
        """Creates an instance without a call of ``__init__``, which would need the positions."""
        job = cls.__new__(cls)
        job.__dict__.update(dataset=dataset, share=share, task=task, head=head, rounds=(1, None))
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


def _labels(dataset: Any, by: str | None, values: NDArray, label: str) -> NDArray[np.int64] | None:
    """Returns the class of each example, shape (n,).

    Returns None if the classes aren't known, or if every example would have to be read only to find the classes.
    """
    if by != label:
        if label not in (getattr(dataset, "column_names", None) or ()):
            return None
        try:
            values = _values(dataset, label)
        except InputError:
            return None
    whole = values.ndim == 1 and values.dtype.kind in "biu" and 0 <= values.min() <= values.max() < MOST_CLASSES
    return values.astype(np.int64) if whole else None


def _values(dataset: Any, by: str) -> NDArray:
    try:
        return _column(dataset, by)
    except ValueError as error:  # lists of different lengths, such as a label for each token
        raise InputError.of("by", by, "a column of single values", str(error).splitlines()[0]) from error


def _column(dataset: Any, by: str) -> NDArray:
    names = getattr(dataset, "column_names", None)
    if names is not None:
        if by not in names:
            raise InputError.of("by", by, names, "there is no such column")
        return np.asarray(dataset[by][:])
    return np.asarray([_value(dataset[i], by) for i in range(len(dataset))])


def _value(item: Any, by: str) -> ArrayLike:
    if isinstance(item, Mapping):
        if by not in item:
            raise InputError.of("by", by, sorted(map(str, item)), "there is no such key")
        return item[by]
    if by != "label":
        raise InputError.of("by", by, "label, for a data set of (input, label)")
    return item[1]
