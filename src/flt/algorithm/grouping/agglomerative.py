"""Agglomerative clustering, with or without pairs that must not be linked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from flt.algorithm.grouping.counted import Counted
from flt.core.errors import InputError

LINKAGES = ("average", "complete", "ward")
_LIMIT = 1e3
"""Times the largest distance of two uploads: what lies beyond is forbidden. No linkage makes clusters of 100,000
uploads so distant, nor those with a forbidden pair, which is n^2 times as distant, so near."""


@dataclasses.dataclass(frozen=True)
class AgglomerativeGrouping(Counted):
    """The two nearest clusters are merged until K are left.

    With ``cannot_link`` no merge joins two jobs of one client. Merges are final, so it can happen that no merge is
    allowed any more while there are more than K clusters: then these stay (k-means always finds K).

    Attributes:
        linkage: Distance of two clusters: ``average`` or largest (``complete``) distance of their uploads, or growth of
            the inertia (``ward``).
    """

    linkage: str = dataclasses.field(default="average", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linkage not in LINKAGES:
            raise InputError.of("grouping.linkage", self.linkage, LINKAGES)

    def cut(self, features: np.ndarray, clients: Sequence[int], k: int, seed: int) -> np.ndarray:
        """The cluster of each upload (n,); nothing is drawn."""
        return merged(features, clients if self.cannot_link else range(len(features)), k, self.linkage)


def merged(features: np.ndarray, clients: Sequence[int], k: int, kind: str) -> np.ndarray:
    """Merges the nearest clusters until k are left, or no two that have no client in common.

    Args:
        features: (n, d).
        clients: The client of each upload: two uploads of one client are never in one cluster.
        k: Number of clusters.
        kind: One of LINKAGES.

    Returns:
        The cluster of each upload (n,).

    Example:
        >>> merged(np.array([[0.0], [1.0], [9.0], [9.5]]), [0, 1, 2, 3], 2, "average").tolist()
        [1, 1, 0, 0]
    """
    distances, of = pdist(features.astype(np.float64)), np.asarray(clients)
    limit = _LIMIT * (distances.max() or 1.0)
    first, second = np.triu_indices(len(of), 1)
    tree = linkage(np.where(of[first] == of[second], limit * len(of) ** 2, distances), kind)
    labels = np.arange(len(of))
    for number, (a, b, distance, _) in enumerate(tree[: len(of) - k]):
        if distance < limit:
            labels[np.isin(labels, (a, b))] = len(of) + number
    return np.unique(labels, return_inverse=True)[1]
