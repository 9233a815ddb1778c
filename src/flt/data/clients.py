"""Clients and the data of their jobs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from flt.core.errors import InputError
from flt.protocol.job import Job

MOST_SHOWN = 8
"""Largest number of classes that an error names."""


@dataclasses.dataclass(frozen=True)
class JobTask:
    """A task of a job.

    Attributes:
        task: Name of the task, which is used only for evaluation and is never sent to the server.
        head: Name of the task's head if tasks have different heads, else empty.
        names: Name of each class. Empty if the classes have no names.
        classes: Numbers of the classes in ``label_counts``. Tasks with the same head have the same numbers.
    """

    task: str
    head: str = ""
    names: tuple[str, ...] = ()
    classes: range = range(0)


@dataclasses.dataclass(frozen=True, repr=False)
class JobData:
    """Data of one job: a data set and the positions of the job's examples in it.

    The subclass :class:`flt.data.job_data.UnsplitJobData` computes the positions when they are first read.

    Attributes:
        dataset: Map-style data set that contains the examples of all clients.
        train: Positions of the job's training examples in the data set, shape (n,).
        held_out: Positions of the held-out examples, on which the job's model is evaluated. Shape (m,).
        task: Name of the job's task, which is used only for evaluation and is never sent to the server. If the job has
            several tasks, their names with ``+`` between them.
        label_counts: Number of training examples of each class. Empty if the classes aren't known. The figure of the
            partition shows these numbers. The adapter C2A uses them on the client, see ``adapter.label_source`` and
            ``adapter.histogram``.
        head: Name of the job's head if jobs have different heads, else empty. The head of a job with several tasks may
            be a joint head, see :mod:`flt.protocol.layout`.
        rounds: First and last round in which the job takes part, counted from 1. If the last round is None, the job
            takes part until the end.
        label_names: Name of each class, in the order of ``label_counts``. Empty if the classes have no names.
        change: First round in which the job has other data, and these data. None if the data never change.
        parts: The job's tasks, if the jobs of the federation have several tasks. Empty: each job has one task.
    """

    dataset: Dataset
    train: np.ndarray
    held_out: np.ndarray
    task: str = ""
    label_counts: tuple[int, ...] = ()
    head: str = ""
    rounds: tuple[int, int | None] = (1, None)
    label_names: tuple[str, ...] = ()
    change: tuple[int, JobData] | None = None
    parts: tuple[JobTask, ...] = ()

    def at(self, round: int) -> JobData:
        """Returns the data that the job has in a round, counted from 1."""
        if self.change is None or round < self.change[0]:
            return self
        later = self.change[1]
        return later if later.rounds == self.rounds else later.but(rounds=self.rounds)

    def with_dataset(self, replaced: Callable[[Dataset], Dataset]) -> JobData:
        """Returns a copy in which ``replaced`` has been applied to the data set, also to that of a later round."""
        change = self.change and (self.change[0], self.change[1].with_dataset(replaced))
        return self.but(dataset=replaced(self.dataset), change=change)

    def but(self, **changes: Any) -> JobData:
        """Returns a copy with new values of the given fields.

        Unlike ``dataclasses.replace``, this method doesn't read the other fields, which may be expensive to compute.

        Raises:
            TypeError: A given name isn't the name of a field.
        """
        if unknown := set(changes) - {field.name for field in dataclasses.fields(self)}:
            raise TypeError(f"JobData has no field {', '.join(sorted(unknown))}")
        job = copy.copy(self)
        job.__dict__.update(changes)  # setattr would fail, because the dataclass is frozen
        return job

    def __repr__(self) -> str:
        """Returns the task and the number of training examples, such as ``JobData('sst2', 40 examples)``."""
        return f"JobData({f'{self.task!r}, ' * bool(self.task)}{self.examples} examples)"

    @property
    def examples(self) -> int:
        """Number of training examples of the job."""
        return len(self.train)

    @property
    def each_task(self) -> tuple[JobTask, ...]:
        """The job's tasks. Most jobs have one."""
        return self.parts or (JobTask(self.task, self.head, self.label_names),)

    @property
    def class_numbers(self) -> tuple[int, ...]:
        """For each output of a job with several tasks: number of its class in ``label_counts``. Else empty."""
        return tuple(number for own in dict.fromkeys(part.classes for part in self.parts) for number in own)

    @property
    def is_temporary(self) -> bool:
        """True if the job doesn't take part in all rounds."""
        return self.rounds != (1, None)

    def takes_part(self, round: int) -> bool:
        """Returns whether the job takes part in a round, counted from 1."""
        first, last = self.rounds
        return first <= round and (last is None or round <= last)

    @property
    def training_set(self) -> Subset:
        """Data set of the job's training examples."""
        return _Rows(self.dataset, self.train)  # type: ignore[arg-type]  # an array of positions works like a list

    def validation_set(self, most: int | None) -> Subset:
        """Returns a data set of at most ``most`` held-out examples, or of all held-out examples if ``most`` is None.

        The examples are evenly spaced among all held-out examples, because a data set may be sorted by label.
        """
        size = len(self.held_out)
        chosen = np.linspace(0, size - 1, min(size, size if most is None else most)).astype(np.int64)
        return _Rows(self.dataset, self.held_out[chosen])  # type: ignore[arg-type]  # an array works like a list


class _Rows(Subset):
    """Subset whose positions are an array. A data set is asked for integers of Python, as a sampler asks for them."""

    def __getitem__(self, i: Any) -> Any:
        return self.dataset[np.asarray(self.indices)[i].tolist()]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        chosen: list[int] = np.asarray(self.indices)[indices].tolist()
        together = getattr(self.dataset, "__getitems__", None)
        return together(chosen) if callable(together) else [self.dataset[i] for i in chosen]


def check_order(key: str, names: Sequence[str], others: Sequence[str]) -> None:
    """Checks that two data sets don't number the same classes differently.

    Raises:
        InputError: They have the same names of classes in another order.
    """
    if tuple(names) != tuple(others) and sorted(names) == sorted(others):
        why = f"{', '.join(names[:MOST_SHOWN])} and {', '.join(others[:MOST_SHOWN])}"
        raise InputError.of(key, "the same classes in another order", "classes with the same numbers in all data", why)


def class_names_of(jobs: Iterable[JobData]) -> dict[str, tuple[str, ...]]:
    """Returns task -> names of its classes. A task is left out if it has none, or if its jobs have different ones.

    Raises:
        InputError: Jobs of a task have the same classes in another order, so that a number means different classes.
    """
    found: dict[str, tuple[str, ...]] = {}
    different = set()
    for own in (task for job in jobs for task in job.each_task if task.names):
        names = found.setdefault(own.task, own.names)
        if names is not own.names and names != own.names:  # nearly always the same tuple
            check_order("clients", names, own.names)
            different.add(own.task)
    return {task: names for task, names in found.items() if task not in different}


@dataclasses.dataclass(frozen=True)
class ClientSpec:
    """Description of a client: the data of its jobs, and the rank that it can train.

    Attributes:
        id: Number of the client.
        data: Data of each of the client's jobs. Most clients have one job.
        rank: Number of rank-1 components per layer that the client can train. If None, it can train all components.
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
        """Returns the server's descriptions of the client's jobs.

        Args:
            rank: Initial rank of the adapter, used if the client has no rank.
        """
        return tuple(Job(self.id, index, self.rank or rank, data.head) for index, data in enumerate(self.data))
