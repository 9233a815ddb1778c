"""Each task's examples to the clients: who has which jobs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flt.client import ClientSpec, JobData
from flt.config import TrainConfig
from flt.data.collect import job_data
from flt.data.encode import Examples
from flt.data.partition import partition, settings
from flt.errors import InputError

ATTEMPTS = 100
"""Draws of a partition, before a client without a job is an error."""


def deal(
    cfg: TrainConfig,
    train: Examples,
    tasks: Mapping[str, tuple[np.ndarray, np.ndarray]],
    column: np.ndarray | None,
) -> list[ClientSpec]:
    """Deals each task to the clients on its own; drawn again until every client has something to do.

    Args:
        cfg: Number of clients, partition and seed.
        train: The training examples.
        tasks: Task -> its positions among them, and their labels inside the task.
        column: Value of the column that tells clients apart, for each example (n,).

    Raises:
        InputError: No draw gave each client an example.
    """
    for attempt in range(ATTEMPTS):
        parts = {
            task: _partition(cfg, labels, None if column is None else column[positions], (cfg.seed, number, attempt))
            for number, (task, (positions, labels)) in enumerate(tasks.items())
        }
        if all(any(len(of_one) for of_one in shares) for shares in zip(*parts.values(), strict=True)):
            break
    else:
        allowed = "fewer, a larger partition.alpha, or a smaller partition.min_share"
        raise InputError.of("clients", cfg.clients, allowed, f"no draw out of {ATTEMPTS} gave each of them an example")
    clients: list[list[JobData]] = [[] for _ in next(iter(parts.values()))]
    for task, (positions, labels) in tasks.items():
        examples = train.view(positions, labels)
        for jobs, share in zip(clients, parts[task], strict=True):
            if len(share):
                jobs.append(job_data(examples, labels, share, cfg.partition.held_out, cfg.seed, task))
    return [ClientSpec(client, tuple(jobs)) for client, jobs in enumerate(clients)]


def _partition(
    cfg: TrainConfig, labels: np.ndarray, column: np.ndarray | None, seed: tuple[int, ...]
) -> list[np.ndarray]:
    known = {name: getattr(cfg.partition, name) for name in settings(cfg.partition.kind)}
    return partition(cfg.partition.kind, labels=labels, column=column, clients=cfg.clients, seed=seed, **known)
