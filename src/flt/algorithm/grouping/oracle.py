"""Grouping by the true tasks, as an upper bound for the quality of clusterings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from flt.algorithm.grouping.base import Clustering
from flt.algorithm.view import View
from flt.protocol.messages import JobId, Update


@dataclasses.dataclass(frozen=True)
class OracleGrouping(Clustering):
    """One group for each true task.

    This grouping is an upper bound for evaluation and not a method, since a real server doesn't have the true tasks.
    Only this part gets the tasks, through :meth:`with_tasks`. Features are computed only for cluster metrics and
    pictures. With ``newcomers: nearest``, a newcomer joins the group of its task if this group exists.
    """

    by_features: ClassVar[bool] = False

    @property
    def finds_number(self) -> bool:
        """Always False, since the number of tasks is given."""
        return False

    def with_tasks(self, tasks: Mapping[JobId, str]) -> OracleWithTasks:
        """Returns the oracle for a federation whose jobs have these true tasks."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        known = settings.get("names", ())
        names = (*known, *sorted(set(tasks.values()) - set(known)))  # a task keeps its place when others come
        return OracleWithTasks(**{**settings, "tasks": dict(tasks), "names": names})

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Never called: only the result of :meth:`with_tasks` can group jobs."""
        raise AssertionError("build tells the oracle the tasks")


@dataclasses.dataclass(frozen=True)
class OracleWithTasks(OracleGrouping):
    """Oracle for one federation, with the true tasks of its jobs.

    Attributes:
        tasks: True task of each job.
        names: All tasks so far. Group n belongs to the n-th of them (n = 1, 2, ...). They are in alphabetical order,
            and tasks that jobs change to later are behind the others.
    """

    tasks: dict[JobId, str] = dataclasses.field(default_factory=dict, kw_only=True)
    names: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def several(self) -> bool:
        """True if there is more than one task."""
        return len(self.names) > 1

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Returns the cluster of each update (n,): the position of its task among the round's tasks, sorted by name."""
        return np.unique([self.tasks[job] for job in jobs], return_inverse=True)[1]

    def _group_ids(self, view: View, updates: Sequence[Update], labels: np.ndarray) -> dict[int, int]:
        return {int(label): self._group(update) for update, label in zip(updates, labels, strict=True)}

    def _newcomers(self, view: View, updates: Sequence[Update]) -> list[Update]:
        return [update for update in super()._newcomers(view, updates) if self._group(update) in view.state.groups]

    def _joining(
        self, view: View, members: Mapping[int, list[Update]], newcomers: Sequence[Update]
    ) -> dict[JobId, int]:
        return {update.job: self._group(update) for update in newcomers}

    def _group(self, update: Update) -> int:
        return 1 + self.names.index(self.tasks[update.job])
