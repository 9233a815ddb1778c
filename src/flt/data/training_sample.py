"""Fixed sample of the clients' training examples, on which the global model is compared with validation examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Dataset, Subset

from flt.data.clients import ClientSpec, JobData
from flt.data.examples import Examples, stratified_sample
from flt.data.joint import JointExamples


def training_samples(clients: Iterable[ClientSpec], size: int, seed: int) -> dict[str, Dataset]:
    """Returns task -> a sample of at most ``size`` training examples of all clients together.

    The sample is stratified by class if all clients' examples belong to one :class:`Examples`, else it is random. The
    same seed gives the same sample.

    Args:
        clients: The clients.
        size: Largest number of examples of a task, at least 1.
        seed: Seed of the sample.
    """
    shares: dict[str, list[tuple[Any, NDArray[np.int64]]]] = {}
    for job in (job for client in clients for job in client.data):
        for task, dataset, positions in _by_task(job):
            shares.setdefault(task, []).append((dataset, positions))
    return {task: _sample(own, size, seed) for task, own in shares.items()}


def _by_task(job: JobData) -> Iterator[tuple[str, Any, NDArray[np.int64]]]:
    """Yields each task of a job, the data set of the task, and the positions of the training examples in it."""
    if not isinstance(job.dataset, JointExamples):
        yield job.task, job.dataset, job.train
        return
    parts = dict(zip(job.dataset.tasks, job.dataset.parts, strict=True))
    yield from ((task, parts[task], np.asarray(own)) for task, own in job.dataset.by_task(job.train).items())


def _sample(shares: Sequence[tuple[Any, NDArray[np.int64]]], size: int, seed: int) -> Dataset:
    dataset = shares[0][0]
    if isinstance(dataset, Examples) and all(other is dataset for other, _ in shares):
        pool = dataset.view(np.concatenate([positions for _, positions in shares]))
        return pool.view(stratified_sample(pool, size, seed))
    joined: ConcatDataset[Any] = ConcatDataset([Subset(other, positions.tolist()) for other, positions in shares])
    return Subset(joined, sorted(np.random.default_rng(seed).permutation(len(joined))[:size].tolist()))
