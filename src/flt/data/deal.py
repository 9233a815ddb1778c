"""Division of each task's examples among the clients.

A client gets one job for each task that gives it examples or, with ``jobs=per_client``, one job with all its tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.data.joint_jobs import JointJobs, TaskData, is_joint
from flt.data.partition import partition, settings
from flt.data.partition_dataset import job_data

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig

ATTEMPTS = 100
"""Largest number of draws of the partition. If each draw leaves a client without examples, an error is raised."""


def deal(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[ClientSpec]:
    """Divides the examples of all tasks among the clients.

    The examples of each task are divided independently of other tasks. There is one exception: with
    ``partition.kind=by_column``, the examples of all tasks are divided together if all tasks have the column
    ``data.column``. The division is drawn again until every client has at least one example.

    Args:
        cfg: Configuration with the number of clients, the partition and the seed.
        tasks: Tasks whose examples are divided.

    Raises:
        InputError: Each of ``ATTEMPTS`` draws left a client without examples.
    """
    for attempt in range(ATTEMPTS):
        parts = _parts(cfg, tasks, attempt)
        if all(any(len(of_one) for of_one in shares) for shares in zip(*parts, strict=True)):
            break
    else:
        allowed = "fewer, a larger partition.alpha, or a smaller partition.min_share"
        raise InputError.of("clients", cfg.clients, allowed, f"no draw out of {ATTEMPTS} gave each of them an example")
    if is_joint(cfg, tasks):
        joint = JointJobs(tasks, cfg.partition.held_out, cfg.seed)
        return [ClientSpec(client, (joint.job(shares),)) for client, shares in enumerate(zip(*parts, strict=True))]
    clients: list[list[JobData]] = [[] for _ in parts[0]]
    for task, shares in zip(tasks, parts, strict=True):
        train = task.splits["train"]
        for jobs, share in zip(clients, shares, strict=True):
            if len(share):
                how = (cfg.partition.held_out, cfg.seed, task.name, task.head, task.names)
                jobs.append(job_data(train, train.labels, train.labels, share, *how))
    return [ClientSpec(client, tuple(jobs)) for client, jobs in enumerate(clients)]


def _parts(cfg: TrainConfig, tasks: Sequence[TaskData], attempt: int) -> list[list[np.ndarray]]:
    """Returns, for each task, the positions of each client's examples."""
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
