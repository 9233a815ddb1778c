"""Test examples for each client, drawn in the shares of the client's own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flt.core.errors import InputError
from flt.data import random_splits as draws
from flt.data.clients import ClientSpec, JobData
from flt.data.examples import Examples
from flt.data.joint_jobs import TaskData
from flt.data.partition import BY_COLUMN
from flt.protocol.messages import JobId

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig

KEY = "eval.client_test_examples"
LABELS = ("own", "uniform", "wrong")


def client_tests(cfg: TrainConfig, tasks: Sequence[TaskData], clients: Sequence[ClientSpec]) -> dict[JobId, Examples]:
    """Returns job -> test examples that follow the job's own shares of the classes; empty if none are wanted.

    With ``partition.kind=by_column`` and ``by_column_dirichlet``, the examples also have the client's own values of
    ``data.column``, such as its language. No example is drawn twice for a job, so that a job whose classes are rare in
    the test split gets fewer examples. The draws depend only on the seed and the job.

    Args:
        cfg: Configuration with the number of examples, the partition and the seed.
        tasks: Tasks with their test splits.
        clients: Clients with their training examples.

    Raises:
        InputError: A setting is out of range, jobs have several tasks or change theirs, a task has no test split, a
            test split has no ``data.column``, or a client has no label counts or gets no example.
    """
    size, by_name = cfg.eval.client_test_examples, {task.name: task for task in tasks}
    _check_settings(cfg)
    if not size:
        return {}
    by_column = cfg.partition.kind in BY_COLUMN
    if any(job.parts for client in clients for job in client.data):
        raise InputError.of(KEY, size, "0, or jobs=per_task", "jobs have several tasks")
    _check(tasks, size, by_column)
    found = {}
    for client in clients:
        for index, job in enumerate(client.data):
            task, seed = by_name[job.task], (cfg.seed, client.id, index)
            if not sum(job.label_counts):
                raise InputError.of(KEY, size, "0, or data with labels", f"client {client.id} has no label counts")
            rows = _drawn(task, job, size, by_column, seed)
            if not len(rows):
                why = f"client {client.id} has classes of which the test split has no example"
                raise InputError.of(KEY, size, "a larger number, or 0", why)
            found[client.id, index] = task.splits["test"].view(rows)
    return found


def with_labels(job: JobData, labels: str) -> JobData:
    """Returns the job with the label counts that an adapter is to compute with.

    Args:
        job: The job.
        labels: ``own``: those of the job. ``uniform``: equal counts of all classes. ``wrong``: those of the job, moved
            by half of the classes, so that class k has the count of class k + K // 2, modulo K.
    """
    counts = job.label_counts
    half = len(counts) // 2
    return job.but(
        label_counts={"uniform": (1,) * len(counts), "wrong": counts[half:] + counts[:half]}.get(labels, counts)
    )


def _check_settings(cfg: TrainConfig) -> None:
    size, chosen = cfg.eval.client_test_examples, cfg.eval.client_labels
    if size < 0:
        raise InputError.of(KEY, size, "an integer >= 0")
    if wrong := [labels for labels in chosen if labels not in LABELS]:
        raise InputError.of("eval.client_labels", wrong[0], LABELS)
    if not chosen:
        raise InputError.of("eval.client_labels", "[]", f"a list of {', '.join(LABELS)}, at least one of them")
    if not size and list(chosen) != ["own"]:
        raise InputError.of("eval.client_labels", list(chosen), f"[own] with {KEY}=0", "no client is tested")
    if size and cfg.task_changes:
        raise InputError.of(KEY, size, "0, or task_changes=null", "the classes of a job change during the run")


def _check(tasks: Sequence[TaskData], size: int, by_column: bool) -> None:
    lacking: Mapping[str, bool] = {
        "the data have no test split": any("test" not in task.splits for task in tasks),
        "the test split has no data.column": by_column and any("test" not in task.columns for task in tasks),
    }
    for why, is_so in lacking.items():
        if is_so:
            raise InputError.of(KEY, size, "0, or data with a test split (data.test)", why)


def _drawn(task: TaskData, job: JobData, size: int, by_column: bool, seed: Sequence[int]) -> np.ndarray:
    """Returns the positions of a job's test examples in the test split of its task, sorted."""
    labels, rng = task.splits["test"].labels, draws.generator("client_tests", seed)
    theirs = np.ones(len(labels), dtype=bool)
    if by_column and task.column is not None:
        theirs = np.isin(task.columns["test"], np.unique(task.column[job.train]))
    shares = np.array(job.label_counts) / sum(job.label_counts)
    chosen = [
        rng.permutation(np.flatnonzero(theirs & (labels == label)))[:wanted]
        for label, wanted in enumerate(draws.counts(shares, size))
    ]
    return np.sort(np.concatenate(chosen))
