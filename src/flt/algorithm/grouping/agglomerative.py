"""Agglomerative clustering, optionally with the constraint that one client's jobs are in different clusters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from flt.algorithm.grouping.cluster_count import KClustering
from flt.core.errors import InputError

LINKAGES = ("average", "complete", "ward")
_LIMIT = 1e3
"""Factor by which the largest distance between two updates is multiplied to get a limit.

Two clusters whose distance is above the limit are never merged.

If two updates must not be in one cluster, the distance between them is set to n^2 times the limit, where n is the
number of updates. The distance between two clusters is then above the limit if their merge would join two such updates,
and below the limit otherwise. This is true for every linkage and for up to 100,000 updates.
"""


@dataclasses.dataclass(frozen=True)
class AgglomerativeGrouping(KClustering):
    """Agglomerative clustering: merges the two nearest clusters until K clusters are left.

    With ``cannot_link``, no merge joins two jobs of one client. Merges are never undone, so more than K clusters can be
    left when no further merge is allowed. (K-means always finds K clusters.)

    Attributes:
        linkage: Distance between two clusters. ``average``: the mean distance between their updates. ``complete``: the
            largest distance between their updates. ``ward``: the increase of the inertia that their merge causes.
    """

    linkage: str = dataclasses.field(default="average", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linkage not in LINKAGES:
            raise InputError.of("grouping.linkage", self.linkage, LINKAGES)

    def cut(self, features: np.ndarray, clients: Sequence[int], k: int, seed: int) -> np.ndarray:
        """Returns the cluster of each update (n,). The seed isn't used."""
        return merged(features, clients if self.cannot_link else range(len(features)), k, self.linkage)


def merged(features: np.ndarray, clients: Sequence[int], k: int, kind: str) -> np.ndarray:
    """Merges the nearest clusters until k clusters are left, or until every two clusters have a client in common.

    Args:
        features: Features of the updates (n, d).
        clients: Client of each update. Two updates of one client are never put into one cluster.
        k: Number of clusters at which the merging ends.
        kind: Linkage, one of ``LINKAGES``.

    Returns:
        The cluster of each update (n,).

    Example:
        >>> merged(np.array([[0.0], [1.0], [9.0], [9.5]]), [0, 1, 2, 3], 2, "average").tolist()
        [1, 1, 0, 0]
    """
    distances, owners = pdist(features.astype(np.float64)), np.asarray(clients)
    limit = _LIMIT * (distances.max() or 1.0)
    first, second = np.triu_indices(len(owners), 1)
    tree = linkage(np.where(owners[first] == owners[second], limit * len(owners) ** 2, distances), kind)
    labels = np.arange(len(owners))
    for number, (a, b, distance, _) in enumerate(tree[: len(owners) - k]):
        if distance < limit:
            labels[np.isin(labels, (a, b))] = len(owners) + number
    return np.unique(labels, return_inverse=True)[1]
