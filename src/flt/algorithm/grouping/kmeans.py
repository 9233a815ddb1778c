"""K-means, optionally with the constraint that one client's jobs are in different clusters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from flt.algorithm.grouping.cluster_count import KClustering
from flt.algorithm.grouping.features import squared_distances
from flt.core.errors import InputError

ITERATIONS = 300


@dataclasses.dataclass(frozen=True)
class KMeansGrouping(KClustering):
    """K-means over the updates (FL-TAC, arXiv 2404.15384).

    Attributes:
        n_init: Number of restarts. The result with the lowest inertia is used.
    """

    n_init: int = dataclasses.field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_init < 1:
            raise InputError.of("grouping.n_init", self.n_init, "an integer >= 1")

    def cut(self, features: np.ndarray, clients: Sequence[int], k: int, seed: int) -> np.ndarray:
        """Returns the cluster of each update (n,)."""
        from sklearn.cluster import KMeans  # slow import, only needed here

        if self.cannot_link:
            return kmeans_apart(features, clients, k, self.n_init, seed)
        return KMeans(k, n_init=self.n_init, random_state=seed).fit_predict(features)


def kmeans_apart(features: np.ndarray, clients: Sequence[int], k: int, n_init: int, seed: int) -> np.ndarray:
    """Runs k-means under the constraint that the updates of one client are in different clusters.

    COP-k-means (Wagstaff et al., 2001) has the same constraint, but assigns one update after the other. Here, all
    updates of a client are assigned to different centroids at once, so that the sum of their squared distances is
    smallest. Updates of different clients don't constrain each other. Therefore no assignment can fail, and no step of
    k-means raises the inertia.

    Args:
        features: Features of the updates (n, d), n > k.
        clients: Client of each update. No client has more than k updates.
        k: Number of clusters.
        n_init: Number of restarts from k-means++. The result with the lowest inertia is used; ties go to the first.
        seed: Seed of the restarts.

    Returns:
        The cluster of each update (n,).
    """
    from sklearn.cluster import kmeans_plusplus  # slow import, only needed here

    points = features.astype(np.float64)
    results = [_descended(points, clients, kmeans_plusplus(points, k, random_state=start)[0])
               for start in np.random.SeedSequence(seed).generate_state(n_init)]  # fmt: skip
    return min(results, key=lambda result: result[1])[0]


def _descended(points: np.ndarray, clients: Sequence[int], centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Runs k-means from these centres until no label changes, and returns the labels and the inertia.

    A centre without points keeps its position.
    """
    labels = np.full(len(points), -1)
    for _ in range(ITERATIONS):
        distances = squared_distances(points, centres)
        before, labels = labels, assigned_apart(distances, clients)
        if np.array_equal(labels, before):
            break
        centres = np.stack([points[labels == k].mean(axis=0) if (labels == k).any() else at
                            for k, at in enumerate(centres)])  # fmt: skip
    return labels, float(distances[np.arange(len(points)), labels].sum())


def assigned_apart(distances: np.ndarray, clients: Sequence[int]) -> np.ndarray:
    """Assigns each client's updates to different clusters (Hungarian algorithm), and returns the labels (updates,).

    For each client, the sum of the distances is as small as possible.

    Args:
        distances: Squared distances (updates, clusters).
        clients: Client of each update. No client has more updates than there are clusters.

    Example:
        >>> assigned_apart(np.array([[0.0, 2.0], [0.0, 9.0], [1.0, 5.0]]), [0, 0, 1])
        array([1, 0, 0])
    """
    labels, owners = np.empty(len(distances), dtype=int), np.asarray(clients)
    for client in np.unique(owners):
        (rows,) = np.nonzero(owners == client)
        labels[rows] = linear_sum_assignment(distances[rows])[1]
    return labels
