"""Division of each task's examples among the clients, which decides the jobs of each client."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.data.examples import Examples
from flt.data.partition import partition, settings
from flt.data.partition_dataset import job_data

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig

ATTEMPTS = 100
"""Number of draws of a partition after which a client without a job is an error."""


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Examples and head of one task.

    Attributes:
        name: Name of the task, used for evaluation.
        splits: train, and validation and test if they exist. Labels are numbered within the task.
        columns: Split -> value of ``data.column`` for each example (n,), for the splits that have this column. In train
            the column may tell clients apart.
        head: Name of the head of the task's jobs if jobs have different heads.
    """

    name: str
    splits: Mapping[str, Examples]
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    head: str = ""

    @property
    def column(self) -> np.ndarray | None:
        """Values of ``data.column`` for the training examples; None without this column."""
        return self.columns.get("train")

    def by_column(self) -> Iterator[TaskData]:
        """Yields a task for each value of ``data.column``, with the examples of this value from each split."""
        found = {split: values.astype(str) for split, values in self.columns.items()}
        for value in sorted({str(value) for values in found.values() for value in values}):
            at = {split: np.flatnonzero(values == value) for split, values in found.items()}
            yield TaskData(value, {split: self.splits[split].view(rows) for split, rows in at.items() if len(rows)})


def deal(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[ClientSpec]:
    """Deals the examples of each task to the clients, independently of other tasks.

    The partition is drawn again until every client has at least one example. With the partition by_column, the column
    tells clients apart in all tasks together: a client gets a job for each task in which it has examples.

    Args:
        cfg: Configuration with the number of clients, the partition and the seed.
        tasks: Tasks to deal.

    Raises:
        InputError: No draw gave each client an example.
    """
    for attempt in range(ATTEMPTS):
        parts = _parts(cfg, tasks, attempt)
        if all(any(len(of_one) for of_one in shares) for shares in zip(*parts, strict=True)):
            break
    else:
        allowed = "fewer, a larger partition.alpha, or a smaller partition.min_share"
        raise InputError.of("clients", cfg.clients, allowed, f"no draw out of {ATTEMPTS} gave each of them an example")
    clients: list[list[JobData]] = [[] for _ in parts[0]]
    for task, shares in zip(tasks, parts, strict=True):
        train = task.splits["train"]
        for jobs, share in zip(clients, shares, strict=True):
            if len(share):
                how = (cfg.partition.held_out, cfg.seed, task.name, task.head)
                jobs.append(job_data(train, train.labels, train.labels, share, *how))
    return [ClientSpec(client, tuple(jobs)) for client, jobs in enumerate(clients)]


def _parts(cfg: TrainConfig, tasks: Sequence[TaskData], attempt: int) -> list[list[np.ndarray]]:
    """Returns the positions of each client's examples, task by task."""
    columns = [task.column for task in tasks if task.column is not None]
    labels = [task.splits["train"].labels for task in tasks]
    if cfg.partition.kind != "by_column" or len(columns) < len(tasks):
        return [
            _partition(cfg, own, task.column, (cfg.seed, number, attempt))
            for number, (task, own) in enumerate(zip(tasks, labels, strict=True))
        ]
    shares = _partition(cfg, np.concatenate(labels), np.concatenate(columns), (cfg.seed, 0, attempt))
    ends = np.cumsum([len(column) for column in columns])
    return [
        [share[(share >= end - len(column)) & (share < end)] - (end - len(column)) for share in shares]
        for column, end in zip(columns, ends, strict=True)
    ]


def _partition(
    cfg: TrainConfig, labels: np.ndarray, column: np.ndarray | None, seed: tuple[int, ...]
) -> list[np.ndarray]:
    known = {name: getattr(cfg.partition, name) for name in settings(cfg.partition.kind)}
    return partition(cfg.partition.kind, labels=labels, column=column, clients=cfg.clients, seed=seed, **known)
