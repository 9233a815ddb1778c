"""Clients and their jobs: which examples they hold, and what they can train."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from flt.core.errors import InputError
from flt.protocol.job import Job


@dataclasses.dataclass(frozen=True)
class JobData:
    """Data of one job: a data set and the positions of the job's examples in it.

    The subclass :class:`flt.data.partition_dataset.UnsplitJobData` computes the positions when they are first read.

    Attributes:
        dataset: Map-style; shared by all clients.
        train: Positions of its training examples (n,).
        held_out: Positions of the examples on which its model is evaluated (m,).
        task: Name of its task: for evaluation only, the server never sees it.
        label_counts: Training examples of each class: for the picture of the partition, and what C2A computes with on
            the client where ``adapter.label_source=client``. Empty where they aren't known.
        head: Which head its module gets, where jobs have different ones.
        rounds: The first and the last round in which it takes part, counted from 1; None: to the end.
    """

    dataset: Dataset
    train: np.ndarray
    held_out: np.ndarray
    task: str = ""
    label_counts: tuple[int, ...] = ()
    head: str = ""
    rounds: tuple[int, int | None] = (1, None)

    def but(self, **changes: Any) -> JobData:
        """Returns a copy with other values of some fields. Unlike ``dataclasses.replace``, reads no other field.

        Raises:
            TypeError: There is no field of this name.
        """
        if unknown := set(changes) - {field.name for field in dataclasses.fields(self)}:
            raise TypeError(f"JobData has no field {', '.join(sorted(unknown))}")
        job = copy.copy(self)
        job.__dict__.update(changes)  # the dataclass is frozen
        return job

    @property
    def examples(self) -> int:
        """Number of training examples of the job."""
        return len(self.train)

    @property
    def comes_and_goes(self) -> bool:
        """Whether there are rounds in which it takes no part."""
        return self.rounds != (1, None)

    def takes_part(self, round: int) -> bool:
        """Whether the job is there in a round, counted from 1."""
        first, last = self.rounds
        return first <= round and (last is None or round <= last)

    @property
    def training_set(self) -> Subset:
        """The training examples."""
        return Subset(self.dataset, self.train)  # type: ignore[arg-type]  # an array of positions serves as well as a list

    def validation_set(self, most: int | None) -> Subset:
        """The held-out examples, at most ``most`` of them, at even distances: a data set may be sorted by label."""
        size = len(self.held_out)
        chosen = np.linspace(0, size - 1, min(size, size if most is None else most)).astype(np.int64)
        return Subset(self.dataset, self.held_out[chosen])  # type: ignore[arg-type]  # as above


@dataclasses.dataclass(frozen=True)
class ClientSpec:
    """A client: its jobs' data and its capacity.

    Attributes:
        id: The client's number.
        data: One share per job; most clients have one.
        rank: Pairs per layer that it can train; None: all of them.
    """

    id: int
    data: tuple[JobData, ...]
    rank: int | None = None

    def __post_init__(self) -> None:
        if not self.data or any(job.examples == 0 for job in self.data):
            raise InputError.of(
                f"client {self.id}", "no training examples", "at least one example for each of its jobs"
            )

    def jobs(self, rank: int) -> tuple[Job, ...]:
        """The client's jobs as the server knows them; ``rank`` is the adapter's initial rank."""
        return tuple(Job(self.id, index, self.rank or rank, data.head) for index, data in enumerate(self.data))
