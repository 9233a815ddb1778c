"""Grouping by the true tasks: what a clustering could reach at best."""

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
    """A group for each true task.

    An upper bound for evaluation, and no method: a server doesn't see tasks. :meth:`knowing` tells this part alone of
    them. Features only serve distances and pictures. A newcomer joins the group of its task, where there is one.
    """

    by_features: ClassVar[bool] = False

    @property
    def open(self) -> bool:
        """Whether the number of clusters is found, and not given."""
        return False

    def with_tasks(self, tasks: Mapping[JobId, str]) -> KnowingOracle:
        """The grouping that knows the task of each job."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return KnowingOracle(**given, tasks=dict(tasks))

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Asked of :class:`KnowingOracle` alone."""
        raise AssertionError("build tells the oracle the tasks")


@dataclasses.dataclass(frozen=True)
class KnowingOracle(OracleGrouping):
    """The oracle of one federation.

    Attributes:
        tasks: Job -> its task. Group n is the n-th task in the order of their names.
    """

    tasks: dict[JobId, str] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def several(self) -> bool:
        """Whether there is more than one task."""
        return len(set(self.tasks.values())) > 1

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """The tasks among the uploads, in the order of their names (n,)."""
        return np.unique([self.tasks[job] for job in jobs], return_inverse=True)[1]

    def _identities(self, view: View, updates: Sequence[Update], labels: np.ndarray) -> dict[int, int]:
        return {int(at): self._group(update) for update, at in zip(updates, labels, strict=True)}

    def _late(self, view: View, updates: Sequence[Update]) -> list[Update]:
        return [update for update in super()._late(view, updates) if self._group(update) in view.state.groups]

    def _joining(self, view: View, members: Mapping[int, list[Update]], late: Sequence[Update]) -> dict[JobId, int]:
        return {update.job: self._group(update) for update in late}

    def _group(self, update: Update) -> int:
        return 1 + sorted(set(self.tasks.values())).index(self.tasks[update.job])
