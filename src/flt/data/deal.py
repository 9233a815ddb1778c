"""Each task's examples to the clients: who has which jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from flt.client import ClientSpec, JobData
from flt.config import TrainConfig
from flt.data.collect import job_data
from flt.data.encode import Examples
from flt.data.partition import partition, settings
from flt.errors import InputError

ATTEMPTS = 100
"""Draws of a partition, before a client without a job is an error."""


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task: its examples, and what its jobs are.

    Attributes:
        name: Its name, for evaluation.
        splits: train, and validation and test where there are any; labels are counted inside the task.
        column: Value of the column that tells clients apart, for each training example (n,).
        head: Which head its jobs have, where jobs have different ones.
    """

    name: str
    splits: Mapping[str, Examples]
    column: np.ndarray | None = None
    head: str = ""


def deal(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[ClientSpec]:
    """Deals each task to the clients on its own; drawn again until every client has something to do.

    Args:
        cfg: Number of clients, partition and seed.
        tasks: What is dealt.

    Raises:
        InputError: No draw gave each client an example.
    """
    for attempt in range(ATTEMPTS):
        parts = [_partition(cfg, task, (cfg.seed, number, attempt)) for number, task in enumerate(tasks)]
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
                job = job_data(train, train.labels, share, cfg.partition.held_out, cfg.seed, task.name)
                jobs.append(dataclasses.replace(job, head=task.head))
    return [ClientSpec(client, tuple(jobs)) for client, jobs in enumerate(clients)]


def _partition(cfg: TrainConfig, task: TaskData, seed: tuple[int, ...]) -> list[np.ndarray]:
    known = {name: getattr(cfg.partition, name) for name in settings(cfg.partition.kind)}
    kind, labels = cfg.partition.kind, task.splits["train"].labels
    return partition(kind, labels=labels, column=task.column, clients=cfg.clients, seed=seed, **known)
