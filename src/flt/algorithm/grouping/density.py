"""Clusterings by density, which find the number of clusters themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flt.algorithm.grouping.base import Clustering
from flt.algorithm.grouping.features import centroids, squared_distances
from flt.core.errors import InputError
from flt.protocol.messages import JobId


@dataclasses.dataclass(frozen=True)
class DbscanGrouping(Clustering):
    """DBSCAN (Ester et al., 1996), scikit-learn's; noise joins the nearest cluster, see :func:`without_noise`.

    Attributes:
        eps: Largest distance of neighbours, in the unit of the features; changes of unit length are about 1.41 apart
            where they have nothing in common.
        min_samples: Neighbours of a core upload, itself among them.
    """

    eps: float = 1.2
    min_samples: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eps < np.inf:
            raise InputError.of("grouping.eps", self.eps, "a number > 0")
        if self.min_samples < 1:
            raise InputError.of("grouping.min_samples", self.min_samples, "an integer >= 1")

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """The cluster of each upload (n,); nothing is drawn."""
        from sklearn.cluster import DBSCAN  # a second of its own, for those who group

        return without_noise(features, DBSCAN(eps=self.eps, min_samples=self.min_samples).fit_predict(features))


@dataclasses.dataclass(frozen=True)
class HdbscanGrouping(Clustering):
    """HDBSCAN (Campello et al., 2013), scikit-learn's; noise joins the nearest cluster, see :func:`without_noise`.

    Attributes:
        min_cluster_size: Fewest uploads of a cluster; fewer uploads in all are one cluster.
        min_samples: Neighbours by which density is measured, the upload itself among them.
    """

    min_cluster_size: int = 3
    min_samples: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_cluster_size < 2:
            raise InputError.of("grouping.min_cluster_size", self.min_cluster_size, "an integer >= 2")
        if self.min_samples < 1:
            raise InputError.of("grouping.min_samples", self.min_samples, "an integer >= 1")

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """The cluster of each upload (n,); nothing is drawn."""
        from sklearn.cluster import HDBSCAN  # a second of its own, for those who group

        if len(features) < max(self.min_cluster_size, self.min_samples):
            return np.zeros(len(features), dtype=int)
        found = HDBSCAN(min_cluster_size=self.min_cluster_size, min_samples=self.min_samples, copy=True)
        return without_noise(features, found.fit_predict(features))


def without_noise(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Puts noise where the centre is nearest: every upload has to be averaged with some (our decision).

    Args:
        features: (n, d).
        labels: The cluster of each upload (n,), from 0; -1: noise. Nothing but noise is one cluster.

    Example:
        >>> without_noise(np.array([[0.0], [1.0], [9.0], [6.0]]), np.array([0, 0, 1, -1]))
        array([0, 0, 1, 1])
    """
    noise = labels < 0
    if noise.all():
        return np.zeros(len(labels), dtype=int)
    centres = centroids(features[~noise].astype(np.float64), labels[~noise])
    nearest = squared_distances(features.astype(np.float64), centres).argmin(axis=1)
    return np.where(noise, nearest, labels)
