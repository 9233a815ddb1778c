"""What a grouping answers, and what all clusterings share: features, the identity of clusters, newcomers."""

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
"""The least that a round's silhouette counts as; a first round that separates nothing would leave no directions."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """A grouping's answer.

    Attributes:
        members: Group -> those of the updates that are averaged in it.
        joining: Job -> the group from which it starts from now on, without being averaged into it this round.
        directions: Job -> what the grouping will read in later rounds (features,), of a grouping with a memory.
    """

    members: dict[int, list[Update]]
    joining: dict[JobId, int] = dataclasses.field(default_factory=dict)
    directions: dict[JobId, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Everyone(GroupingPart):
    """One group for all jobs."""

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Returns one group, the home group, with all updates."""
        return Groups({view.state.home: list(updates)} if updates else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clustering(GroupingPart):
    """Groups by features of the uploads, from scratch in each round, without task labels.

    A cluster keeps its identity from round to round. With ``features: weights`` clusters are matched to the groups of
    the last round so that the sum of squared distances between their centres is smallest (Hungarian). Changes have no
    centre that lasts for rounds, so with ``features: changes`` clusters are matched so that most of the jobs stay in
    their group; among equals the distance of the mean weights decides. Where the number of clusters is found and only
    one has ever been, it is home itself, as in FedAvg.

    Attributes:
        features: ``weights`` as they were sent (FL-TAC), or ``changes``: the update minus the job's own broadcast,
            centred over the uploads, each of unit length (our reconstruction).
        tensors: ``all`` that every job sends, so no heads where tasks have different ones; or ``lora``: the adapter
            without any head.
        newcomers: A job that no grouping has met begins with the home's v0. ``home``: what it trained is clustered and
            averaged like all others. ``nearest``: once there are clusters, it is not averaged in its first round, and
            starts from the nearest cluster in its next one (our reconstruction). Nearest is, of ``weights``, the group
            with the smallest distance; of ``changes``, the one whose way from v0, less the mean of all groups' ways,
            has the largest cosine with the job's first change, which began at v0 as well.
        memory: Changes of all rounds, not of this one alone: a job's direction is the sum of its centred changes, each
            times the square of its round's silhouette, that of the clusters found by the round's changes alone, or
            times ``LEAST_CLARITY`` squared where it is below (our reconstruction). Rounds in which tasks pull apart so
            outweigh those in which changes are noise and the clients' own. Costs the server one adapter for each job
            that took part.
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
    """True if features decide."""

    @property
    def several(self) -> bool:
        """True if there can be more than one group."""
        return True

    @property
    def reads_changes(self) -> bool:
        """True if jobs are clustered by what their training changed."""
        return self.features == "changes"

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses tensors to cluster that don't train, or that not every job sends.

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
        """Names of the tensors that are clustered."""
        return features.names(layout, self.tensors)

    @property
    def open(self) -> bool:
        """Whether the number of clusters is found, and not given."""
        return True

    @property
    def apart(self) -> bool:
        """Whether one client's jobs of a round are in different clusters."""
        return False

    @abc.abstractmethod
    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """The cluster of each upload (n,), numbered from 0 without gaps; of features (n, d), n >= 1."""

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Group -> its members among the updates, and the newcomers that only join."""
        if not updates:
            return Groups({})
        if not self.several:
            return Everyone()(view, updates)
        met = self.clustered(view, updates)
        late = [update for update in updates if update not in met]
        directions = self._directions(view, met) if met else np.empty((0, 0))
        members = self._clustered(view, met, self._scaled(directions)) if met else {}
        joining = self._joining(view, members, late) if late else {}
        kept = zip((update.job for update in met), torch.from_numpy(directions), strict=True) if self.memory else ()
        return Groups(members, joining, {job: direction.clone() for job, direction in kept})

    def clustered(self, view: View, updates: Sequence[Update]) -> list[Update]:
        """The updates without those of newcomers that only join."""
        late = self._late(view, updates)
        return [update for update in updates if update not in late]

    def describe(self, view: View, updates: Sequence[Update]) -> np.ndarray:
        """Features of the updates (n, d), float32."""
        return self._scaled(self._directions(view, updates))

    def _directions(self, view: View, updates: Sequence[Update]) -> np.ndarray:
        names = features.names(view.layout, self.tensors)
        if self.features == "weights":
            return features.weights(view, updates, names)
        found = features.changes(view, updates, names)
        if not self.memory:
            return found
        found *= self._clarity(view, updates, features.unit(found)) ** 2
        before = view.state.directions
        return np.stack([row + before[u.job].numpy() if u.job in before else row
                         for row, u in zip(found, updates, strict=True)])  # fmt: skip

    def _clarity(self, view: View, updates: Sequence[Update], described: np.ndarray) -> np.float32:
        """The silhouette of the clusters of these features alone; at least a little, where there is none as well."""
        from sklearn.metrics import silhouette_score  # a second of its own, for those who group

        found = self._found(view, updates, described)
        clear = silhouette_score(described, found) if 0 < found.max() < len(found) - 1 else 0
        return np.float32(max(clear, LEAST_CLARITY))

    def _found(self, view: View, updates: Sequence[Update], described: np.ndarray) -> np.ndarray:
        return self.labels(described, [update.job for update in updates], int(view.generator().integers(2**31)))

    def _scaled(self, directions: np.ndarray) -> np.ndarray:
        return directions if self.features == "weights" else features.unit(directions)

    def _clustered(self, view: View, updates: Sequence[Update], described: np.ndarray) -> dict[int, list[Update]]:
        found = self._found(view, updates, described)
        if self.open and not found.max() and set(view.state.groups) == {view.state.home}:
            return {
                view.state.home: list(updates)
            }  # one task so far: whoever comes late starts from what it has learnt
        names = self._identities(view, updates, found)
        return {gid: [u for u, at in zip(updates, found, strict=True) if at == label] for label, gid in names.items()}

    def _identities(self, view: View, updates: Sequence[Update], labels: np.ndarray) -> dict[int, int]:
        names = features.names(view.layout, self.tensors)
        known = features.groups(view, names)
        stay = None if self.features == "weights" else _staying(view, updates, labels, sorted(known))
        return match(features.centroids(features.weights(view, updates, names), labels), known, stay)

    def _late(self, view: View, updates: Sequence[Update]) -> list[Update]:
        """The newcomers that only join; where a client would run out of clusters, none of its jobs."""
        known = len(set(view.state.groups) - {view.state.home})
        if self.newcomers == "home" or not known:
            return []
        jobs = Counter(update.job[0] for update in updates)
        new = [update for update in updates if update.job not in view.state.assignment]
        return [update for update in new if not self.apart or jobs[update.job[0]] <= known]

    def _joining(self, view: View, members: Mapping[int, list[Update]], late: Sequence[Update]) -> dict[JobId, int]:
        names = features.names(view.layout, self.tensors)
        gids, cost = features.distances_to_groups(view, late, names, self.features)
        if not self.apart:
            return {update.job: gids[int(at)] for update, at in zip(late, cost.argmin(axis=1), strict=True)}
        joining: dict[JobId, int] = {}
        for client in sorted({update.job[0] for update in late}):
            rows = [row for row, update in enumerate(late) if update.job[0] == client]
            taken = {gid for gid, its in members.items() if any(update.job[0] == client for update in its)}
            free = [column for column, gid in enumerate(gids) if gid not in taken]
            for row, column in zip(*linear_sum_assignment(cost[np.ix_(rows, free)]), strict=True):
                joining[late[rows[row]].job] = gids[free[column]]
        return joining


def match(centroids: np.ndarray, known: Mapping[int, np.ndarray], staying: np.ndarray | None = None) -> dict[int, int]:
    """Gives each cluster the id of the group that it continues, or a new one.

    Args:
        centroids: Centres of the clusters (clusters, features).
        known: Group id -> its centre (features,); id 0 is the home of jobs that no grouping has met, and isn't matched.
        staying: Jobs of each cluster that were in each group before, groups ascending (clusters, groups): as many as
            can be stay where they were, and only among equals the distance decides. None: the distance alone.

    Returns:
        Cluster -> group id.

    Example:
        >>> match(np.array([[9.0], [0.0]]), {1: np.array([0.1]), 2: np.array([8.0])})
        {0: 2, 1: 1}
    """
    names: dict[int, int] = {}
    if known:
        gids = sorted(known)
        cost = ((centroids[:, None, :] - np.stack([known[gid] for gid in gids])[None]) ** 2).sum(-1)
        if staying is not None:
            # all distances together are less than one job
            cost = cost.astype(np.float64) / (1 + cost.sum(dtype=np.float64)) - staying
        rows, columns = linear_sum_assignment(cost)
        names = {int(row): gids[column] for row, column in zip(rows, columns, strict=True)}
    free = (gid for gid in range(1, len(known) + len(centroids) + 1) if gid not in known)
    return {row: names[row] if row in names else next(free) for row in range(len(centroids))}


def _staying(view: View, updates: Sequence[Update], labels: np.ndarray, gids: Sequence[int]) -> np.ndarray:
    counts = np.zeros((int(labels.max()) + 1, len(gids)))
    for update, label in zip(updates, labels, strict=True):
        before = view.state.assignment.get(update.job)
        if before in gids:
            counts[label, gids.index(before)] += 1
    return counts
