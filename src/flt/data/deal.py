"""Division of each task's examples among the clients.

A client gets one job for each task that gives it examples or, with ``jobs=per_client``, one job with all its tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flt.core.errors import InputError
from flt.data.classes import matching
from flt.data.clients import ClientSpec, JobData
from flt.data.job_data import job_data
from flt.data.joint_jobs import JointJobs, TaskData, is_joint
from flt.data.partition import BY_COLUMN, partition, settings

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig

ATTEMPTS = 100
"""Largest number of draws of the partition. If each draw leaves a client without examples, an error is raised."""


def deal(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[ClientSpec]:
    """Divides the examples of all tasks among the clients.

    The examples of each task are divided independently of other tasks, with these exceptions: with
    ``partition.kind=by_column`` and ``by_column_dirichlet``, the examples of all tasks are divided together if all
    tasks have the column ``data.column``, so that a client's jobs have the same value. With ``partition.kind=by_task``,
    they always are. The division is drawn again until every client has at least one example.

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
    kept = kept_shares(cfg, [task.name for task in tasks])
    if is_joint(cfg, tasks):
        if kept:
            raise InputError.of("data.share", kept, "{}, or jobs=per_task", "each client has one job for all its tasks")
        joint = JointJobs(tasks, cfg.partition.held_out, cfg.seed)
        return [ClientSpec(client, (joint.job(shares),)) for client, shares in enumerate(zip(*parts, strict=True))]
    clients: list[list[JobData]] = [[] for _ in parts[0]]
    for task, shares in zip(tasks, parts, strict=True):
        train = task.splits["train"]
        for jobs, share in zip(clients, shares, strict=True):
            if len(share):
                how = (cfg.partition.held_out, cfg.seed, task.name, task.head, task.names)
                jobs.append(job_data(train, train.labels, train.labels, share, *how, kept.get(task.name, 1.0)))
    return [ClientSpec(client, tuple(jobs)) for client, jobs in enumerate(clients)]


def kept_shares(cfg: TrainConfig, tasks: Sequence[str]) -> dict[str, float]:
    """Returns task -> share of its training examples that its jobs keep, as ``data.share`` says.

    Raises:
        InputError: There is no such task, or a share isn't in (0, 1].
    """
    shares: dict[str, float] = dict(cfg.data.get("share") or {})
    for task, share in shares.items():
        if task not in tasks:
            raise InputError.of("data.share", task, tasks, "there is no such task")
        if not 0 < share <= 1:
            raise InputError.of(f"data.share.{task}", share, "a number in (0, 1]")
    return shares


def _parts(cfg: TrainConfig, tasks: Sequence[TaskData], attempt: int) -> list[list[np.ndarray]]:
    """Returns, for each task, the positions of each client's examples."""
    kind = cfg.partition.kind
    found = task_names(cfg, tasks) if kind == "by_task" else [task.column for task in tasks]
    columns = [column for column in found if column is not None]
    labels = [task.splits["train"].labels for task in tasks]
    if kind not in (*BY_COLUMN, "by_task") or len(columns) < len(tasks):
        return [
            _partition(cfg, own, task.column, (cfg.seed, number, attempt))
            for number, (task, own) in enumerate(zip(tasks, labels, strict=True))
        ]
    firsts = np.cumsum([0, *(1 + own.max() for own in labels[:-1])])  # tasks have classes of their own
    classes = np.concatenate([own + first for own, first in zip(labels, firsts, strict=True)])
    shares = _partition(cfg, classes, np.concatenate(columns), (cfg.seed, 0, attempt))
    ends = np.cumsum([len(column) for column in columns])
    return [
        [share[(share >= end - len(column)) & (share < end)] - (end - len(column)) for share in shares]
        for column, end in zip(columns, ends, strict=True)
    ]


def task_names(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[np.ndarray | None]:
    """Returns, for each task, the name of the task of each training example, shape (n,).

    Without ``jobs=per_task``, a single task has all examples. Their tasks are then those of ``data.tasks``, and classes
    of no task form one more, whose name is empty. None stands for data without tasks.

    Raises:
        InputError: A class belongs to two tasks.
    """
    sizes = [len(task.splits["train"].labels) for task in tasks]
    if cfg.jobs == "per_task" or len(tasks) > 1:
        return [np.full(size, task.name) for task, size in zip(tasks, sizes, strict=True)]
    patterns, (whole,) = cfg.data.get("tasks") or {}, tasks
    if not patterns:
        return [None]
    labels = whole.splits["train"].labels
    of_class = dict.fromkeys(range(max(len(whole.names), int(labels.max()) + 1)), "")
    for name, classes in patterns.items():
        for k in matching(f"data.tasks.{name}", classes, whole.names):
            if of_class[k]:
                raise InputError.of(f"data.tasks.{name}", whole.names[k], f"classes that aren't in {of_class[k]}")
            of_class[k] = name
    return [np.array([of_class[k] for k in labels.tolist()])]


def _partition(
    cfg: TrainConfig, labels: np.ndarray, column: np.ndarray | None, seed: tuple[int, ...]
) -> list[np.ndarray]:
    known = {name: getattr(cfg.partition, name) for name in settings(cfg.partition.kind)}
    return partition(cfg.partition.kind, labels=labels, column=column, clients=cfg.clients, seed=seed, **known)
