"""Online clustering: clusters stay from round to round, and jobs that are far from all of them open new ones (ours)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from flt.algorithm.grouping.agglomerative import merged
from flt.algorithm.grouping.base import Clustering
from flt.algorithm.grouping.cluster_count import most_separate, renumbered
from flt.algorithm.grouping.features import unit
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import JobId, Update


@dataclasses.dataclass(frozen=True)
class OnlineGrouping(Clustering):
    """Online clustering, which detects new tasks without being told (our rule).

    The number of clusters is never given. In each round::

        c_in  = cosine of job i's features and the sum of the features of the other jobs that were in cluster n
        a job stays in its cluster n as long as c_in >= -new_cluster, or if it is there alone in this round
        another job, such as a newcomer, joins the nearest cluster (largest c_in), if c_in >= -new_cluster
        the other jobs are far from all clusters
            they are clustered among themselves: two clusters are merged while their mean cosine is >= -new_cluster / 2
            each of these clusters that has at least min_jobs jobs is opened
            a far job joins the nearest cluster after all if no cluster is opened for it, or if its cosine with the
            other jobs of the new cluster doesn't exceed the largest c_in by more than new_cluster

    A job whose data change to a known task therefore moves to the cluster of this task. A cluster whose jobs no longer
    take part keeps its weights and its id. The features are centred over the round. If there is only one task, all jobs
    are therefore far from each other. If all jobs of a round are far, they are clustered from scratch: by
    agglomerative clustering with average linkage into the number of clusters, from 1 to ``max_k``, whose silhouette is
    highest, see :func:`~flt.algorithm.grouping.cluster_count.most_separate`. This is also done in the first round.

    Attributes:
        new_cluster: How far below 0 the cosines of a job and all clusters are if the job is far from them. 0 opens
            clusters most readily. Jobs of one task have cosines around 0 or above if their changes are noisy, and jobs
            of different tasks negative ones, because the features are centred: about -1 / (tasks - 1). The
            default therefore suits up to five tasks, and more tasks need a smaller number.
        min_jobs: Smallest number of far jobs that open a cluster together.
        max_k: Largest number of clusters if jobs are clustered from scratch.
        min_silhouette: Lower limit for the silhouette if jobs are clustered from scratch. Without a number of clusters
            above this limit, these jobs form one cluster.
    """

    detects_tasks: ClassVar[bool] = True

    features: str = "changes"
    tensors: str = "lora"
    new_cluster: float = dataclasses.field(default=0.2, kw_only=True)
    min_jobs: int = dataclasses.field(default=2, kw_only=True)
    max_k: int = dataclasses.field(default=10, kw_only=True)
    min_silhouette: float = dataclasses.field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features != "changes":
            raise InputError.of(
                "grouping.features", self.features, "changes", "online clustering needs centred features"
            )
        if not 0 <= self.new_cluster < 1:
            raise InputError.of("grouping.new_cluster", self.new_cluster, "a number in [0, 1)")
        if self.min_jobs < 1:
            raise InputError.of("grouping.min_jobs", self.min_jobs, "an integer >= 1")
        if self.max_k < 2:
            raise InputError.of("grouping.max_k", self.max_k, "an integer >= 2")
        if not -1 <= self.min_silhouette < 1:
            raise InputError.of("grouping.min_silhouette", self.min_silhouette, "a number in [-1, 1)")

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Clusters the updates from scratch, and returns the cluster of each update (n,). The seed isn't used."""

        def cut(k: int) -> np.ndarray:
            return (
                np.arange(len(features)) if len(features) <= k else merged(features, range(len(features)), k, "average")
            )

        return most_separate(features, cut, 1, self.max_k, self.min_silhouette)

    def _labels(self, view: View, updates: Sequence[Update], described: np.ndarray) -> np.ndarray:
        """Returns the cluster of each update (n,). The clusters of the rounds before come first."""
        points, jobs = unit(described.astype(np.float64)), [update.job for update in updates]
        before = np.array([view.state.assignment.get(job, -1) for job in jobs])
        gids = sorted(set(before.tolist()) - {-1})
        near = cosines_to(points, [before == gid for gid in gids])
        for cluster, gid in enumerate(gids):
            if (before == gid).sum() == 1:
                near[before == gid, cluster] = 0.0  # there is no job to compare it with, so that it stays
        if not gids or near.max() < -self.new_cluster:
            return self.labels(points, jobs, 0)
        labels, far = near.argmax(axis=1), np.flatnonzero(near.max(axis=1) < -self.new_cluster)
        for cluster, gid in enumerate(gids):
            labels[(before == gid) & (near[:, cluster] >= -self.new_cluster)] = cluster
        if len(far) >= self.min_jobs:
            parts = self._parts(points[far])
            for part in range(int(parts.max()) + 1):
                self._open(points, far[parts == part], near, labels)
        return renumbered(labels)

    def _parts(self, points: np.ndarray) -> np.ndarray:
        """Returns the cluster of each far job (n,). Two clusters are merged while their mean cosine is large enough."""
        tree = linkage(pdist(points, "cosine"), "average") if len(points) > 1 else np.empty((0, 4))
        return renumbered(fcluster(tree, 1 + self.new_cluster / 2, "distance") if len(tree) else np.zeros(1, int))

    def _group_ids(self, view: View, updates: Sequence[Update], labels: np.ndarray) -> dict[int, int]:
        """Returns the group id of each cluster. A cluster without any job of an older one gets a new id."""
        found = super()._group_ids(view, updates, labels)
        before = [view.state.assignment.get(update.job) for update in updates]
        stays = {label for label, at in zip(labels.tolist(), before, strict=True) if found[label] == at}
        kept = {found[label] for label in stays}
        free = (gid for gid in itertools.count(1) if gid not in kept and gid not in view.state.groups)
        return {label: found[label] if label in stays else next(free) for label in sorted(found)}

    def _open(self, points: np.ndarray, rows: np.ndarray, near: np.ndarray, labels: np.ndarray) -> None:
        """Gives far jobs a new label, except for those that are nearer to an old cluster than to each other."""
        while len(rows) >= self.min_jobs:
            together = np.isin(np.arange(len(points)), rows)
            stays = cosines_to(points, [together])[rows, 0] > near[rows].max(axis=1) + self.new_cluster
            if stays.all() or len(rows) == 1:
                labels[rows] = labels.max() + 1
                return
            rows = rows[stays]


def cosines_to(points: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the cosine of each point and the sum of each cluster's members, shape (n, clusters).

    A point isn't counted as a member of its own cluster. The cosine with a cluster without other members is -1.

    Args:
        points: Points of length 1, shape (n, d).
        members: For each cluster, which points are its members, booleans (n,).

    Example:
        >>> cosines_to(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), [np.array([True, True, False])]).ravel().tolist()
        [1.0, 1.0, 0.0]
    """
    columns = []
    for inside in members:
        others = points[inside].sum(axis=0) - np.where(inside[:, None], points, 0)
        count = inside.sum() - inside
        columns.append(np.where(count > 0, (points * unit(others)).sum(axis=1), -1.0))
    return np.stack(columns, axis=1) if columns else np.empty((len(points), 0))
