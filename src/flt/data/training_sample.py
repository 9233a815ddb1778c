"""Fixed sample of the clients' training examples, on which the global model is compared with validation examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, Subset

from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.data.examples import Examples, stratified_sample


def training_samples(clients: Iterable[ClientSpec], size: int, seed: int) -> dict[str, Dataset]:
    """Returns task -> a sample of at most ``size`` training examples of all clients together.

    The sample is stratified by class if all clients' examples belong to one :class:`Examples`, else it is random. The
    same seed gives the same sample.

    Args:
        clients: The clients.
        size: Largest number of examples of a task, at least 1.
        seed: Seed of the sample.
    """
    jobs: dict[str, list[JobData]] = {}
    for job in (job for client in clients for job in client.data):
        jobs.setdefault(job.task, []).append(job)
    return {task: _sample(own, size, seed) for task, own in jobs.items()}


def check_training_samples(clients: Iterable[ClientSpec], size: int) -> None:
    """Checks that :func:`training_samples` can draw the samples, if any are wanted.

    Raises:
        InputError: A job has several tasks.
    """
    if size and any(job.parts for client in clients for job in client.data):
        raise InputError.of("eval.train_examples", size, "0, or jobs=per_task", "jobs have several tasks")


def _sample(jobs: Sequence[JobData], size: int, seed: int) -> Dataset:
    dataset = jobs[0].dataset
    if isinstance(dataset, Examples) and all(job.dataset is dataset for job in jobs):
        pool = dataset.view(np.concatenate([job.train for job in jobs]))
        return pool.view(stratified_sample(pool, size, seed))
    joined: ConcatDataset[Any] = ConcatDataset([job.training_set for job in jobs])
    return Subset(joined, sorted(np.random.default_rng(seed).permutation(len(joined))[:size].tolist()))
