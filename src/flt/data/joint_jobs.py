"""Jobs with several tasks: each client trains one model on the examples of all its tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flt.data.clients import JobData, JobTask
from flt.data.examples import Examples
from flt.data.held_out import check_fraction
from flt.data.job_data import JointShare, Share, UnsplitJobData
from flt.data.joint import JointExamples
from flt.data.output_names import output_names
from flt.protocol.layout import JOIN

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Examples and head of one task.

    Attributes:
        name: Name of the task, used for evaluation.
        splits: Name of a split -> the task's examples in the split. The splits validation and test may be missing. The
            labels of a task start at 0.
        columns: Split -> value of ``data.column`` for each example, shape (n,). Splits without this column are missing.
        head: Name of the head for the task's jobs. Empty if all jobs have the same head.
        names: Name of each class. Empty if the classes have no names.
        width: Number of outputs of the task's head. 0: the labels aren't outputs, as with a causal model.
    """

    name: str
    splits: Mapping[str, Examples]
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    head: str = ""
    names: tuple[str, ...] = ()
    width: int = 0

    @property
    def column(self) -> np.ndarray | None:
        """Values of ``data.column`` for the training examples, shape (n,). None if there is no such column."""
        return self.columns.get("train")

    def by_column(self) -> Iterator[TaskData]:
        """Yields the examples of each value of ``data.column``, as a task whose name is the value."""
        found = {split: values.astype(str) for split, values in self.columns.items()}
        for value in sorted({str(value) for values in found.values() for value in values}):
            at = {split: np.flatnonzero(values == value) for split, values in found.items()}
            yield TaskData(value, {split: self.splits[split].view(rows) for split, rows in at.items() if len(rows)})


def is_joint(cfg: TrainConfig, tasks: Collection[object]) -> bool:
    """Returns whether a client has one job with all its tasks."""
    return cfg.jobs == "per_client" and len(tasks) > 1


class JointJobs:
    """Builds one job for each client from the client's shares of all tasks.

    The classes have the same numbers in ``label_counts`` of all jobs. Tasks with the same head also have the same
    classes. If labels aren't outputs of a head, as with a causal model, each task has its own.

    Args:
        tasks: All tasks.
        held_out: Fraction of each task's share that is held out.
        seed: Seed of the draw of the held-out examples.
    """

    def __init__(self, tasks: Sequence[TaskData], held_out: float, seed: int) -> None:
        check_fraction(held_out)
        self.tasks, self.held_out, self.seed = tasks, held_out, seed
        self.numbers: dict[str, range] = {}
        """Head, or task if labels aren't outputs -> numbers of its classes."""
        self.names: tuple[str, ...] = ()
        for task in tasks:
            if (key := self._key(task)) not in self.numbers:
                alike = [other for other in tasks if self._key(other) == key]
                width = max(other.width or 1 + int(other.splits["train"].labels.max()) for other in alike)
                named = output_names([other.names for other in alike])[:width]
                self.numbers[key] = range(len(self.names), len(self.names) + width)
                self.names += (*named, *map(str, range(len(named), width)))
        self._data: dict[tuple[str, ...], JointExamples] = {}

    def job(self, shares: Sequence[np.ndarray]) -> JobData:
        """Returns the job of a client.

        Args:
            shares: For each task, the positions of the client's training and held-out examples. Tasks without examples
                are left out.
        """
        own = [(task, share) for task, share in zip(self.tasks, shares, strict=True) if len(share)]
        parts = tuple(JobTask(t.name, t.head, t.names, self.numbers[self._key(t)]) for t, _ in own)
        dataset = self._joint([task for task, _ in own])
        labels = [task.splits["train"].labels for task, _ in own]
        split = [
            Share(share, of_task, of_task, self.held_out, self.seed)
            for (_, share), of_task in zip(own, labels, strict=True)
        ]
        firsts = tuple(part.classes.start for part in parts)
        joint = JointShare(tuple(split), tuple(dataset.starts.tolist()), firsts, len(self.names))
        head = JOIN.join(dict.fromkeys(part.head for part in parts if part.head))
        return UnsplitJobData.of(dataset, joint, JOIN.join(part.task for part in parts), head, self.names, parts)

    def _joint(self, tasks: Sequence[TaskData]) -> JointExamples:
        """Returns the data set of some tasks, which all jobs with these tasks share."""
        names = tuple(task.name for task in tasks)
        if names not in self._data:
            widths = {task.head: len(self.numbers[self._key(task)]) if task.head else 0 for task in tasks}
            ends = dict(zip(widths, np.cumsum(list(widths.values())).tolist(), strict=True))
            outputs = [range(ends[task.head] - widths[task.head], ends[task.head]) for task in tasks]
            self._data[names] = JointExamples([task.splits["train"] for task in tasks], names, outputs)
        return self._data[names]

    def _key(self, task: TaskData) -> str:
        return task.head if task.width else task.name
