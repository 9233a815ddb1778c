"""Measures the distances within and between clusters, and the agreement of clusters with the true tasks."""

from __future__ import annotations

import dataclasses
import functools
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
    """Updates that were clustered in a round. Updates of newcomers that only join an existing cluster are left out.

    Attributes:
        jobs: Job of each update.
        groups: Id of each update's group after the round.
        features: Features by which the grouping compares the updates. Shape: (updates, features).
    """

    jobs: tuple[JobId, ...]
    groups: tuple[int, ...]
    features: np.ndarray

    @functools.cached_property
    def principal(self) -> tuple[np.ndarray, np.ndarray]:
        """Result of :func:`principal` for the features. Computed once, because several callbacks show it."""
        return principal(self.features)


class Clusters(FedCallback):
    """Logs metrics of the groups and clusters.

    ``round/clustering_acc`` is logged if the grouping can form several groups, and ``cluster/*`` if the grouping
    clusters updates.

    - ``round/clustering_acc``: share of jobs that are in the group of their task. The best one-to-one matching of tasks
      and groups decides which group belongs to which task.
    - ``cluster/within``: mean distance between two updates of the round in the same cluster.
    - ``cluster/between``: mean distance between two updates of the round in different clusters.
    - ``cluster/ratio``: ``cluster/between`` / ``cluster/within``.
    - ``cluster/count``: number of clusters that contain updates of the round.
    - ``cluster/rand``: adjusted Rand index (Hubert and Arabie, 1985) of groups and true tasks, over all jobs that have
      a group.

    Distances are measured between the features by which the grouping compares updates. A mean over no values isn't
    logged. Large distances between clusters don't prove that the clusters are right. Each job starts from the mean of
    its cluster, and therefore the clusters of a wrong clustering drift apart as well.

    Args:
        tasks: Job -> its task. This callback uses the tasks only for its measurements.
    """

    def __init__(self, tasks: Mapping[JobId, str]) -> None:
        self.tasks = tasks
        self.found: Clustered | None = None
        """Updates that were clustered in the last finished round; None if no updates were clustered."""
        self._before: ServerState | None = None

    def on_round_start(self, federator: Federator) -> None:
        """Remembers the server's state before the round."""
        self._before = federator.state

    def on_round_end(self, federator: Federator) -> None:
        """Logs the metrics of the groups and clusters after the round."""
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


def separation(points: np.ndarray, groups: Sequence[int]) -> dict[str, float]:
    """Returns the mean Euclidean distances between updates.

    ``within`` is the mean distance of two updates in the same cluster, ``between`` the mean distance of two updates in
    different clusters, and ``ratio`` is ``between`` / ``within``. A mean over no values is missing. The ratio is
    missing if one of the means is missing or if ``within`` is 0.

    Args:
        points: Features of the updates. Shape: (updates, features).
        groups: Id of each update's group.

    Example:
        >>> separation(np.array([[0.0], [1.0], [4.0]]), [1, 1, 2])
        {'within': 1.0, 'between': 3.5, 'ratio': 3.5}
    """
    distances, group_of = pdist(points.astype(np.float64)), np.asarray(groups)
    first, second = np.triu_indices(len(group_of), 1)
    same = group_of[first] == group_of[second]
    parts = {"within": distances[same], "between": distances[~same]}
    figures = {key: float(part.mean()) for key, part in parts.items() if part.size}
    if len(figures) == 2 and figures["within"] > 0:
        figures["ratio"] = figures["between"] / figures["within"]
    return figures


def principal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects features of shape (n, d) on their first two principal components.

    The sign of each component is chosen so that the coordinate with the largest magnitude is positive. The same
    features therefore always give the same picture.

    Returns:
        The coordinates, shape (n, 2), and each component's share of the variance, shape (2,).
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(features), 2))
    main = (left * values)[:, :2]
    points[:, : main.shape[1]] = main * np.sign(main[np.abs(main).argmax(axis=0), range(main.shape[1])])
    shares = np.zeros(2)
    shares[: main.shape[1]] = values[:2] ** 2 / max((values**2).sum(), np.finfo(float).tiny)
    return points, shares


def rand(state: ServerState, tasks: Mapping[JobId, str]) -> float:
    """Returns the adjusted Rand index of groups and true tasks over all jobs with a group; 1 means full agreement."""
    from sklearn.metrics import adjusted_rand_score  # imported here because the import takes a second

    jobs = sorted(state.assignment)
    return float(adjusted_rand_score([tasks[job] for job in jobs], [state.assignment[job] for job in jobs]))


def clustering_accuracy(state: ServerState, tasks: Mapping[JobId, str]) -> float:
    """Returns the share of jobs in the group of their task, under the best one-to-one matching of tasks and groups.

    Only jobs that were assigned to a group are counted. The home group counts like any other group, because all jobs
    are assigned to the home group if the grouping found only one cluster.

    Example:
        >>> tasks = {(0, 0): "a", (1, 0): "a", (0, 1): "b", (1, 1): "b"}
        >>> clustering_accuracy(ServerState(1, {}, {}, {(0, 0): 1, (1, 0): 2, (0, 1): 2, (1, 1): 2}), tasks)
        0.75
    """
    counts, _, _ = contingency(state, tasks)
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / max(1, counts.sum()))


def contingency(
    state: ServerState, tasks: Mapping[JobId, str | tuple[str, ...]]
) -> tuple[np.ndarray, list[str], list[int]]:
    """Returns the number of jobs of each task (row) in each group (column), the sorted tasks, and the sorted groups.

    Args:
        state: State of the server.
        tasks: Job -> its task, or all its tasks.
    """
    own = {job: (named,) if isinstance(named, str) else named for job, named in tasks.items()}
    names, gids = sorted({name for named in own.values() for name in named}), sorted(set(state.assignment.values()))
    counts = np.zeros((len(names), len(gids)), dtype=int)
    for job, gid in state.assignment.items():
        for name in own[job]:
            counts[names.index(name), gids.index(gid)] += 1
    return counts, names, gids


def cosines(federator: Federator) -> tuple[list[int], np.ndarray]:
    """Returns the ids of the clusters, and the cosines between the changes of the clusters.

    The change of a cluster is its adapter minus v0, the adapter of the home group. The cosines have the shape
    (clusters, clusters). The home group itself is left out, even if it is the only group. Without an adapter all
    cosines are 0.
    """
    view = federator.server.view(federator.state)
    names = features.names(view.layout, "lora")
    weights_of = features.groups(view, names)
    if not weights_of:
        return [], np.empty((0, 0))
    changes = features.unit(np.stack(list(weights_of.values())).astype(np.float64) - features.home(view, names))
    return list(weights_of), changes @ changes.T
