"""Each task's examples to the clients: who has which jobs."""

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
"""Draws of a partition, before a client without a job is an error."""


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task: its examples, and what its jobs are.

    Attributes:
        name: Its name, for evaluation.
        splits: train, and validation and test where there are any; labels are counted inside the task.
        columns: Split -> the value of ``data.column`` of each of its examples (n,), for the splits that have that
            column; in train it may tell clients apart.
        head: Which head its jobs have, where jobs have different ones.
    """

    name: str
    splits: Mapping[str, Examples]
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    head: str = ""

    @property
    def column(self) -> np.ndarray | None:
        """The values of the training examples; None without a column."""
        return self.columns.get("train")

    def by_column(self) -> Iterator[TaskData]:
        """A task for each value, with its part of each split."""
        found = {split: values.astype(str) for split, values in self.columns.items()}
        for value in sorted({str(value) for values in found.values() for value in values}):
            at = {split: np.flatnonzero(values == value) for split, values in found.items()}
            yield TaskData(value, {split: self.splits[split].view(its) for split, its in at.items() if len(its)})


def deal(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[ClientSpec]:
    """Deals each task to the clients on its own; drawn again until every client has something to do.

    A column that tells clients apart does so in all tasks: then a client has the jobs that its examples are of.

    Args:
        cfg: Number of clients, partition and seed.
        tasks: What is dealt.

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
    """The positions that each client has, task by task."""
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
