"""Measures clusters: how far apart they are, and how well they are the true tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist

from flt.algorithm.grouping import features
from flt.algorithm.grouping.base import Clustering
from flt.protocol.messages import JobId
from flt.protocol.state import ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator


@dataclasses.dataclass(frozen=True)
class Clustered:
    """The uploads that a round clustered, as the grouping saw them: without newcomers that only join.

    Attributes:
        jobs: The job of each upload.
        groups: The group of each upload after the round.
        features: In the grouping's own features (uploads, features).
    """

    jobs: tuple[JobId, ...]
    groups: tuple[int, ...]
    features: np.ndarray


class Clusters(FedCallback):
    """Leaves ``round/clustering_acc`` where there may be several groups, and ``cluster/*`` where jobs are clustered.

    The first is the share of jobs in the group of their task, under the best one-to-one matching of tasks and groups.
    ``cluster/within`` and ``cluster/between`` are the mean distances of two uploads of the round in the same and in
    different clusters, in the grouping's own features; ``cluster/ratio`` is between / within, ``cluster/count`` the
    number of clusters of the round's uploads. A figure that has no pair is missing. ``cluster/rand`` is the adjusted
    Rand index (Hubert and Arabie, 1985) of groups and true tasks over all jobs that have a group. Distances are no
    proof of right clusters: slots go on from the mean of their cluster, so a wrong clustering separates as well.

    Args:
        tasks: Job -> its task. Known here, where everything is, and never to the server.
    """

    def __init__(self, tasks: Mapping[JobId, str]) -> None:
        self.tasks = tasks
        self.found: Clustered | None = None
        """Of the round that ended last; None where nothing was clustered in it."""
        self._before: ServerState | None = None

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        self._before = federator.state  # the updates began with it

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        grouping, before, after = federator.server.recipe.grouping, self._before, federator.state
        assert before is not None
        self.found = None
        if not grouping.several or not after.assignment:
            return
        federator.log({"round/clustering_acc": clustering_accuracy(after, self.tasks)})
        if not isinstance(grouping, Clustering) or not federator.updates:
            return
        view = federator.server.view(before)
        updates = grouping.clustered(view, federator.updates)
        if not updates:
            return
        gids = tuple(after.group_of(update.job) for update in updates)
        described = grouping.describe(view, updates)
        self.found = Clustered(tuple(update.job for update in updates), gids, described)
        federator.log({f"cluster/{key}": value for key, value in separation(described, gids).items()})
        federator.log({"cluster/count": len(set(gids)), "cluster/rand": rand(after, self.tasks)})


def separation(found: np.ndarray, groups: Sequence[int]) -> dict[str, float]:
    """Mean Euclidean distances of pairs ``within`` and ``between`` clusters, and their ``ratio``.

    Args:
        found: Features (uploads, features).
        groups: The group of each upload.

    Example:
        >>> separation(np.array([[0.0], [1.0], [4.0]]), [1, 1, 2])
        {'within': 1.0, 'between': 3.5, 'ratio': 3.5}
    """
    distances, at = pdist(found.astype(np.float64)), np.asarray(groups)
    first, second = np.triu_indices(len(at), 1)
    same = at[first] == at[second]
    means = {"within": distances[same], "between": distances[~same]}
    figures = {key: float(its.mean()) for key, its in means.items() if its.size}
    if len(figures) == 2 and figures["within"] > 0:
        figures["ratio"] = figures["between"] / figures["within"]
    return figures


def rand(state: ServerState, tasks: Mapping[JobId, str]) -> float:
    """Adjusted Rand index of the groups and the true tasks, over all jobs that have a group: 1 where they agree."""
    from sklearn.metrics import adjusted_rand_score  # a second of its own, for those who group

    jobs = sorted(state.assignment)
    return float(adjusted_rand_score([tasks[job] for job in jobs], [state.assignment[job] for job in jobs]))


def clustering_accuracy(state: ServerState, tasks: Mapping[JobId, str]) -> float:
    """Share of the jobs that have a group that are in their task's, under the best matching of tasks and groups.

    Home counts as a group where jobs were put into it: where one cluster was found, all are in it.

    Example:
        >>> tasks = {(0, 0): "a", (1, 0): "a", (0, 1): "b", (1, 1): "b"}
        >>> clustering_accuracy(ServerState(1, {}, {}, {(0, 0): 1, (1, 0): 2, (0, 1): 2, (1, 1): 2}), tasks)
        0.75
    """
    counts, _, _ = contingency(state, tasks)
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / max(1, counts.sum()))


def contingency(state: ServerState, tasks: Mapping[JobId, str]) -> tuple[np.ndarray, list[str], list[int]]:
    """How many jobs of each task are in each group (tasks, groups), the tasks and the groups' ids, both ascending."""
    names, gids = sorted(set(tasks.values())), sorted(set(state.assignment.values()))
    counts = np.zeros((len(names), len(gids)), dtype=int)
    for job, gid in state.assignment.items():
        counts[names.index(tasks[job]), gids.index(gid)] += 1
    return counts, names, gids


def cosines(federator: Federator) -> tuple[list[int], np.ndarray]:
    """How alike the clusters' ways from v0 are, over the adapter: the groups, and (groups, groups).

    Home has none, also where it is the only cluster that was found; without an adapter all are 0.
    """
    view = federator.server.view(federator.state)
    names = features.names(view.layout, "lora")
    known = features.groups(view, names)
    if not known:
        return [], np.empty((0, 0))
    ways = features.unit(np.stack(list(known.values())).astype(np.float64) - features.home(view, names))
    return list(known), ways @ ways.T
