"""Clients and their jobs: which examples they hold, and what they can train."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from flt.core.errors import InputError
from flt.protocol.job import Job


class Later(abc.ABC):
    """Fields of a job that are computed when one of them is first read."""

    @property
    @abc.abstractmethod
    def examples(self) -> int:
        """How many training examples the job has."""

    @abc.abstractmethod
    def read(self, field: str) -> Any:
        """The value of a field: train, held_out or label_counts."""


class _Read:
    """A field that may be given as :class:`Later`."""

    def __init__(self, *default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, job: Any, owner: type) -> Any:
        if job is None:
            if self.default:
                return self.default[0]
            raise AttributeError(self.name)  # by which dataclasses know that there is no default
        value = job.__dict__[self.name]
        if isinstance(value, Later):
            value = job.__dict__[self.name] = value.read(self.name)
        return value

    def __set__(self, job: Any, value: Any) -> None:
        job.__dict__[self.name] = value


def _read(*default: Any) -> Any:
    """The descriptor, of any type: the annotation says what is read through it."""
    return _Read(*default)


@dataclasses.dataclass(frozen=True)
class JobData:
    """A job's share of a data set, as positions: a client that isn't in the cohort costs no more than these.

    Positions and counts may be given as :class:`Later`: then those of a client that was in no cohort are one range.

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
    train: np.ndarray = _read()
    held_out: np.ndarray = _read()
    task: str = ""
    label_counts: tuple[int, ...] = _read(())
    head: str = ""
    rounds: tuple[int, int | None] = (1, None)

    def but(self, **changes: Any) -> JobData:
        """The job with other values of some fields; unlike ``dataclasses.replace`` it reads none of the rest."""
        return JobData(**{**self.__dict__, **changes})

    @property
    def examples(self) -> int:
        """How many training examples the job has."""
        train = self.__dict__["train"]
        return train.examples if isinstance(train, Later) else len(train)

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
