"""Result of a grouping, and base class of all clusterings.

The base class computes features, matches clusters to the groups of earlier rounds, and handles newcomers.
"""

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
from flt.algorithm.grouping.memory import Memory, memory_of, vectors
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.protocol.messages import JobId, Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe
    from flt.algorithm.transfer import TransferPart

NEWCOMERS = ("home", "nearest")
LEAST_CLARITY = 0.01
"""Lower limit for a round's silhouette with ``memory``. Without a limit, all features of round 1 could be 0."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Result of a grouping.

    Attributes:
        members: Updates that are averaged in each group, by group id.
        joining: For each job whose update isn't averaged in this round, the group that the job joins from the next
            round on.
        directions: For each job that the memory has, its vector after the round, shape (features,). Empty without
            ``memory``.
        bandit: New state of the bandit; empty without ``grouping=bandit``.
        transfer: Transfer of this round, if the grouping chooses it. None: the recipe's.
    """

    members: dict[int, list[Update]]
    joining: dict[JobId, int] = dataclasses.field(default_factory=dict)
    directions: dict[JobId, Tensor] = dataclasses.field(default_factory=dict)
    bandit: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    transfer: TransferPart | None = None


@dataclasses.dataclass(frozen=True)
class Everyone(GroupingPart):
    """One group for all jobs."""

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Returns the home group with all updates. If there are no updates, returns no group."""
        return Groups({view.state.home: list(updates)} if updates else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clustering(GroupingPart):
    """Base of the groupings that cluster a round's updates by their features, without task labels.

    Jobs without a cluster belong to the home group. If possible, each cluster continues a group of an earlier round.
    With ``features: weights``, clusters are matched to groups so that the sum of squared distances between their
    centres is smallest (Hungarian algorithm). With ``features: changes``, clusters have no centres that can be compared
    over rounds. Clusters are therefore matched so that as many jobs as possible stay in their group. Ties are decided
    by the distances between the mean weights. If the clustering determines the number of clusters and has never found
    more than one cluster, all jobs stay in the home group.

    Attributes:
        features: ``weights``: the weights that a job sent to the server (FL-TAC). ``changes``: these weights minus the
            weights that the job received, centred over the round and scaled to unit length (our reconstruction).
        tensors: ``all``: all tensors that every job sends. Heads are excluded if tasks have different heads. ``lora``:
            the adapter (of any kind) without the head.
        newcomers: Treatment of newcomers. A newcomer is a job that has no group yet. It trained from the weights v0 of
            the home group. ``home``: a newcomer's update is clustered and averaged like all others. ``nearest``: if
            clusters exist, a newcomer's update isn't averaged, and the newcomer starts from the nearest cluster in its
            next round (our reconstruction). The distance is explained in
            :func:`~flt.algorithm.grouping.features.distances_to_groups`.
        memory: If not False, jobs are clustered by the changes of several rounds (our reconstruction). True: by the sum
            of the changes of all rounds so far. ``side_by_side``: by the changes of the rounds side by side. In both,
            clear rounds have larger weights; see :mod:`flt.algorithm.grouping.memory`. A round's silhouette is at least
            ``LEAST_CLARITY``. The server stores one vector for each job that took part.
        memory_rounds: For ``side_by_side``: number of the most recent rounds that are remembered; None: all rounds.
        memory_width: For ``side_by_side``: number of numbers to which the changes are projected at random, in total if
            ``memory_rounds`` is None, and for each round otherwise. None: no projection, which needs ``memory_rounds``.
    """

    features: str = "weights"
    tensors: str = "all"
    newcomers: str = "home"
    memory: bool | int | str = False
    memory_rounds: int | None = None
    memory_width: int | None = 4096

    def __post_init__(self) -> None:
        for key, allowed in (("features", features.KINDS), ("tensors", features.TENSORS), ("newcomers", NEWCOMERS)):
            if getattr(self, key) not in allowed:
                raise InputError.of(f"grouping.{key}", getattr(self, key), allowed)
        if self._memory is not None and self.features != "changes":
            only = "false with grouping.features=weights, which are a memory"
            raise InputError.of("grouping.memory", str(self.memory).lower(), only)

    clusters: ClassVar[bool] = True
    by_features: ClassVar[bool] = True
    """True if the features determine the groups; False if they are computed only for metrics and pictures."""

    @property
    def several(self) -> bool:
        """True if there can be more than one group."""
        return True

    @property
    def reads_changes(self) -> bool:
        """True if jobs are clustered by the changes that their training made to the weights."""
        return self.features == "changes"

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses a clustering unless every job trains and sends at least one of the tensors that are clustered.

        Raises:
            InputError: None of the clustered tensors is trained and sent.
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
        """True if the clustering itself determines the number of clusters; False if the number is given."""
        return True

    @property
    def separates_jobs(self) -> bool:
        """True if the jobs that one client has in a round are always in different clusters."""
        return False

    @abc.abstractmethod
    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Clusters the updates of a round.

        Args:
            features: Features of the updates (n, d), n >= 1.
            jobs: Job of each update.
            seed: Seed of the clustering.

        Returns:
            The cluster of each update (n,), numbered from 0 without gaps.
        """

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Clusters the updates. Returns the members of each group, and the jobs that join a group in the next round."""
        if not updates:
            return Groups({})
        if not self.several:
            return Everyone()(view, updates)
        clustered = self.clustered(view, updates)
        newcomers = [update for update in updates if update not in clustered]
        described, remembered = self._described(view, clustered) if clustered else (np.empty((0, 0)), {})
        members = self._members(view, clustered, described) if clustered else {}
        joining = self._joining(view, members, newcomers) if newcomers else {}
        return Groups(members, joining, {job: torch.from_numpy(kept).clone() for job, kept in remembered.items()})

    def clustered(self, view: View, updates: Sequence[Update]) -> list[Update]:
        """Returns the updates that are clustered: all except those of newcomers that only join a group."""
        newcomers = self._newcomers(view, updates)
        return [update for update in updates if update not in newcomers]

    def describe(self, view: View, updates: Sequence[Update]) -> np.ndarray:
        """Returns the features of the updates (n, d), float32."""
        return self._described(view, updates)[0]

    @property
    def _memory(self) -> Memory | None:
        return memory_of(self.memory, self.memory_rounds, self.memory_width)

    def _described(self, view: View, updates: Sequence[Update]) -> tuple[np.ndarray, dict[JobId, np.ndarray]]:
        """Returns the features of the updates, and the memory after the round."""
        names = features.names(view.layout, self.tensors)
        if self.features == "weights":
            return features.weights(view, updates, names), {}
        changes = features.changes(view, updates, names)
        if self._memory is None:
            return features.unit(changes), {}
        clarity = self._clarity(view, updates, features.unit(changes))
        changed = {update.job: change for update, change in zip(updates, changes, strict=True)}
        kept = self._memory.after(view, vectors(view.state.directions), changed, clarity)
        return features.unit(np.stack([kept[job] for job in changed])), kept

    def _clarity(self, view: View, updates: Sequence[Update], described: np.ndarray) -> np.float32:
        """Clusters the round's features alone. Returns the clusters' silhouette, but at least ``LEAST_CLARITY``."""
        from sklearn.metrics import silhouette_score  # slow import, only needed here

        labels = self._labels(view, updates, described)
        silhouette = silhouette_score(described, labels) if 0 < labels.max() < len(labels) - 1 else 0
        return np.float32(max(silhouette, LEAST_CLARITY))

    def _labels(self, view: View, updates: Sequence[Update], described: np.ndarray) -> np.ndarray:
        return self.labels(described, [update.job for update in updates], int(view.generator().integers(2**31)))

    def _members(self, view: View, updates: Sequence[Update], described: np.ndarray) -> dict[int, list[Update]]:
        labels = self._labels(view, updates, described)
        if self.finds_number and not labels.max() and set(view.state.groups) == {view.state.home}:
            # The only cluster so far uses the home group, so that newcomers start from trained weights.
            return {view.state.home: list(updates)}
        gids = self._group_ids(view, updates, labels)
        return {gid: [u for u, at in zip(updates, labels, strict=True) if at == label] for label, gid in gids.items()}

    def _group_ids(self, view: View, updates: Sequence[Update], labels: np.ndarray) -> dict[int, int]:
        names = features.names(view.layout, self.tensors)
        known = features.groups(view, names)
        stay = None if self.features == "weights" else _stay_counts(view, updates, labels, sorted(known))
        return match(features.centroids(features.weights(view, updates, names), labels), known, stay)

    def _newcomers(self, view: View, updates: Sequence[Update]) -> list[Update]:
        """Returns the updates of the newcomers that aren't clustered in this round, but only join a group.

        If a client's jobs must be in different clusters, but the client has more jobs than there are clusters, all jobs
        of this client are clustered instead.
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
    """Returns the group id of each cluster: the id of the group that the cluster continues, or a new id.

    Args:
        centroids: Centres of the clusters (clusters, features).
        known: Centre (features,) of each group, by id, without the home group. New ids begin at 1, since 0 is the id
            of the home group.
        staying: Number of jobs that each cluster has in common with each group, shape (clusters, groups). The groups
            are in ascending order. If given, as many jobs as possible stay in their group, and the distances decide
            only ties. If None, the distances alone decide.

    Returns:
        Number of the cluster -> id of its group.

    Example:
        >>> match(np.array([[9.0], [0.0]]), {1: np.array([0.1]), 2: np.array([8.0])})
        {0: 2, 1: 1}
    """
    continued: dict[int, int] = {}
    if known:
        gids = sorted(known)
        cost = ((centroids[:, None, :] - np.stack([known[gid] for gid in gids])[None]) ** 2).sum(-1)
        if staying is not None:
            # The distances are scaled so that all of them together weigh less than one job.
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
