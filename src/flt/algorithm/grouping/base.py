"""Result of a grouping, and the base of all clusterings: features, continuity of clusters, newcomers."""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flt.algorithm.base import GroupingPart
from flt.algorithm.grouping import features
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.protocol.messages import JobId, Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

NEWCOMERS = ("home", "nearest")
LEAST_CLARITY = 0.01
"""Lower limit for a round's silhouette as a weight. Without it, all directions could be zero after the first round."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Result of a grouping.

    Attributes:
        members: Updates that are averaged in each group.
        joining: Group that a job joins from the next round on, without being averaged into it in this round.
        directions: Direction (features,) of each job for later rounds; only for groupings with a memory.
    """

    members: dict[int, list[Update]]
    joining: dict[JobId, int] = dataclasses.field(default_factory=dict)
    directions: dict[JobId, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Everyone(GroupingPart):
    """One group for all jobs."""

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Returns one group with all updates: the home group."""
        return Groups({view.state.home: list(updates)} if updates else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clustering(GroupingPart):
    """Base of the groupings that cluster uploads by their features in each round, without task labels.

    Each cluster continues a group of the last round where possible. With ``features: weights``, clusters are matched to
    groups so that the sum of squared distances between their centres is smallest (Hungarian algorithm). Changes have no
    centres that last over rounds. With ``features: changes``, clusters are therefore matched so that as many jobs as
    possible stay in their group; ties are decided by the distance of the mean weights. If the clustering determines the
    number of clusters and has never found more than one, this cluster is the home group, as in FedAvg.

    Attributes:
        features: ``weights`` as sent by the clients (FL-TAC), or ``changes``: the update minus the job's own broadcast,
            centred over the uploads and scaled to unit length (our reconstruction).
        tensors: ``all`` tensors that every job sends, without heads if tasks have different heads; or ``lora``: the
            adapter without any head.
        newcomers: Treatment of a job that isn't assigned to a group yet and has trained from the home group's weights
            v0. ``home``: its update is clustered and averaged like all others. ``nearest``: if clusters exist, its
            update isn't averaged, and the job starts from the nearest cluster in its next round (our reconstruction).
            With ``weights``, the nearest group has the smallest distance. With ``changes``, it has the largest cosine
            between the job's change from v0 and the group's displacement from v0 minus the mean over all groups.
        memory: Clusters by the changes of all rounds. A job's direction is the sum of its centred changes, each times
            the squared silhouette of its round (our reconstruction). The silhouette is that of the clusters found by
            this round's changes alone, and at least ``LEAST_CLARITY``. Rounds with clearly separated tasks thus
            outweigh rounds whose changes are noise or specific to clients. The server stores one vector of the
            adapter's size for each job that took part.
    """

    features: str = "weights"
    tensors: str = "all"
    newcomers: str = "home"
    memory: bool = False

    def __post_init__(self) -> None:
        for key, allowed in (("features", features.KINDS), ("tensors", features.TENSORS), ("newcomers", NEWCOMERS)):
            if getattr(self, key) not in allowed:
                raise InputError.of(f"grouping.{key}", getattr(self, key), allowed)
        if self.memory and self.features != "changes":
            raise InputError.of("grouping.memory", "true", "false with grouping.features=weights, which are a memory")

    clusters: ClassVar[bool] = True
    by_features: ClassVar[bool] = True
    """True if the features decide the groups."""

    @property
    def several(self) -> bool:
        """True if there can be more than one group."""
        return True

    @property
    def reads_changes(self) -> bool:
        """True if jobs are clustered by the changes that their training made."""
        return self.features == "changes"

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses a clustering by tensors that don't train or that some jobs don't send.

        Raises:
            InputError: No tensor is left to cluster.
        """
        if not (self.several and self.by_features):
            return
        sent = recipe.plan.roles - set(recipe.plan(0).private)
        if not any(layout.entries[name].role in sent for name in self.reads(layout)):
            grouping = f"{self.name} with grouping.tensors={self.tensors}"
            why = "none of the tensors that it clusters trains and is sent by every job"
            raise InputError.of("grouping", grouping, "everyone, or a plan that sends some", why)

    def reads(self, layout: Layout) -> list[str]:
        """Returns the names of the tensors that are clustered."""
        return features.names(layout, self.tensors)

    @property
    def finds_number(self) -> bool:
        """True if the clustering determines the number of clusters."""
        return True

    @property
    def separates_jobs(self) -> bool:
        """True if one client's jobs of a round are in different clusters."""
        return False

    @abc.abstractmethod
    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Clusters the uploads of a round.

        Args:
            features: Features of the uploads (n, d), n >= 1.
            jobs: Job of each upload.
            seed: Seed of the clustering.

        Returns:
            The cluster of each upload (n,), numbered from 0 without gaps.
        """

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Returns the members of each group, and the groups that newcomers only join."""
        if not updates:
            return Groups({})
        if not self.several:
            return Everyone()(view, updates)
        clustered = self.clustered(view, updates)
        newcomers = [update for update in updates if update not in clustered]
        directions = self._directions(view, clustered) if clustered else np.empty((0, 0))
        members = self._members(view, clustered, self._normalised(directions)) if clustered else {}
        joining = self._joining(view, members, newcomers) if newcomers else {}
        jobs = [update.job for update in clustered]
        kept = zip(jobs, torch.from_numpy(directions), strict=True) if self.memory else ()
        return Groups(members, joining, {job: direction.clone() for job, direction in kept})

    def clustered(self, view: View, updates: Sequence[Update]) -> list[Update]:
        """Returns the updates without those of newcomers that only join a group."""
        newcomers = self._newcomers(view, updates)
        return [update for update in updates if update not in newcomers]

    def describe(self, view: View, updates: Sequence[Update]) -> np.ndarray:
        """Returns the features of the updates (n, d), float32."""
        return self._normalised(self._directions(view, updates))

    def _directions(self, view: View, updates: Sequence[Update]) -> np.ndarray:
        names = features.names(view.layout, self.tensors)
        if self.features == "weights":
            return features.weights(view, updates, names)
        changes = features.changes(view, updates, names)
        if not self.memory:
            return changes
        changes *= self._clarity(view, updates, features.unit(changes)) ** 2
        before = view.state.directions
        return np.stack([row + before[u.job].numpy() if u.job in before else row
                         for row, u in zip(changes, updates, strict=True)])  # fmt: skip

    def _clarity(self, view: View, updates: Sequence[Update], described: np.ndarray) -> np.float32:
        """Returns the silhouette of the clusters of these features, at least ``LEAST_CLARITY``."""
        from sklearn.metrics import silhouette_score  # slow import, only needed here

        labels = self._labels(view, updates, described)
        silhouette = silhouette_score(described, labels) if 0 < labels.max() < len(labels) - 1 else 0
        return np.float32(max(silhouette, LEAST_CLARITY))

    def _labels(self, view: View, updates: Sequence[Update], described: np.ndarray) -> np.ndarray:
        return self.labels(described, [update.job for update in updates], int(view.generator().integers(2**31)))

    def _normalised(self, directions: np.ndarray) -> np.ndarray:
        return directions if self.features == "weights" else features.unit(directions)

    def _members(self, view: View, updates: Sequence[Update], described: np.ndarray) -> dict[int, list[Update]]:
        labels = self._labels(view, updates, described)
        if self.finds_number and not labels.max() and set(view.state.groups) == {view.state.home}:
            # There has been only one task so far. Its group is home, so that newcomers start from the trained weights.
            return {view.state.home: list(updates)}
        gids = self._group_ids(view, updates, labels)
        return {gid: [u for u, at in zip(updates, labels, strict=True) if at == label] for label, gid in gids.items()}

    def _group_ids(self, view: View, updates: Sequence[Update], labels: np.ndarray) -> dict[int, int]:
        names = features.names(view.layout, self.tensors)
        known = features.groups(view, names)
        stay = None if self.features == "weights" else _stay_counts(view, updates, labels, sorted(known))
        return match(features.centroids(features.weights(view, updates, names), labels), known, stay)

    def _newcomers(self, view: View, updates: Sequence[Update]) -> list[Update]:
        """Returns the updates of newcomers that only join a group.

        If jobs of a client must be in different clusters and the client has more jobs than clusters exist, all its jobs
        are clustered instead.
        """
        known = len(set(view.state.groups) - {view.state.home})
        if self.newcomers == "home" or not known:
            return []
        jobs = Counter(update.job[0] for update in updates)
        new = [update for update in updates if update.job not in view.state.assignment]
        return [update for update in new if not self.separates_jobs or jobs[update.job[0]] <= known]

    def _joining(
        self, view: View, members: Mapping[int, list[Update]], newcomers: Sequence[Update]
    ) -> dict[JobId, int]:
        names = features.names(view.layout, self.tensors)
        gids, cost = features.distances_to_groups(view, newcomers, names, self.features)
        if not self.separates_jobs:
            return {update.job: gids[int(at)] for update, at in zip(newcomers, cost.argmin(axis=1), strict=True)}
        joining: dict[JobId, int] = {}
        for client in sorted({update.job[0] for update in newcomers}):
            rows = [row for row, update in enumerate(newcomers) if update.job[0] == client]
            taken = {gid for gid, updates in members.items() if any(update.job[0] == client for update in updates)}
            free = [column for column, gid in enumerate(gids) if gid not in taken]
            for row, column in zip(*linear_sum_assignment(cost[np.ix_(rows, free)]), strict=True):
                joining[newcomers[rows[row]].job] = gids[free[column]]
        return joining


def match(centroids: np.ndarray, known: Mapping[int, np.ndarray], staying: np.ndarray | None = None) -> dict[int, int]:
    """Gives each cluster the id of the group that it continues, or a new id.

    Args:
        centroids: Centres of the clusters (clusters, features).
        known: Centre (features,) of each group, by id. Id 0 is the home group of unassigned jobs and isn't matched.
        staying: Number of jobs of each cluster that were in each group before (clusters, groups), groups ascending.
            The match keeps as many jobs as possible in their group; the distance decides only ties. None: the distance
            alone decides.

    Returns:
        Id of the group of each cluster.

    Example:
        >>> match(np.array([[9.0], [0.0]]), {1: np.array([0.1]), 2: np.array([8.0])})
        {0: 2, 1: 1}
    """
    continued: dict[int, int] = {}
    if known:
        gids = sorted(known)
        cost = ((centroids[:, None, :] - np.stack([known[gid] for gid in gids])[None]) ** 2).sum(-1)
        if staying is not None:
            # After scaling, all distances together weigh less than one job.
            cost = cost.astype(np.float64) / (1 + cost.sum(dtype=np.float64)) - staying
        rows, columns = linear_sum_assignment(cost)
        continued = {int(row): gids[column] for row, column in zip(rows, columns, strict=True)}
    free = (gid for gid in range(1, len(known) + len(centroids) + 1) if gid not in known)
    return {row: continued[row] if row in continued else next(free) for row in range(len(centroids))}


def _stay_counts(view: View, updates: Sequence[Update], labels: np.ndarray, gids: Sequence[int]) -> np.ndarray:
    counts = np.zeros((int(labels.max()) + 1, len(gids)))
    for update, label in zip(updates, labels, strict=True):
        before = view.state.assignment.get(update.job)
        if before in gids:
            counts[label, gids.index(before)] += 1
    return counts
