"""Density-based clusterings, which determine the number of clusters themselves."""

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
    """DBSCAN of scikit-learn (Ester et al., 1996). Noise joins the nearest cluster, see :func:`without_noise`.

    Attributes:
        eps: Largest distance at which two updates are neighbours, in the unit of the features. Unrelated updates have a
            distance of about 1.41 if the features are changes.
        min_samples: Smallest number of neighbours, including the update itself, that makes an update a core point.
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
        """Returns the cluster of each update (n,). The seed isn't used."""
        from sklearn.cluster import DBSCAN  # slow import, only needed here

        return without_noise(features, DBSCAN(eps=self.eps, min_samples=self.min_samples).fit_predict(features))


@dataclasses.dataclass(frozen=True)
class HdbscanGrouping(Clustering):
    """HDBSCAN of scikit-learn (Campello et al., 2013). Noise joins the nearest cluster, see :func:`without_noise`.

    Attributes:
        min_cluster_size: Smallest number of updates in a cluster. If a round has fewer updates than this number or than
            ``min_samples``, all updates form one cluster.
        min_samples: Number n of neighbours, including the update itself. The distance of the n-th neighbour measures
            the density.
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
        """Returns the cluster of each update (n,). The seed isn't used."""
        from sklearn.cluster import HDBSCAN  # slow import, only needed here

        if len(features) < max(self.min_cluster_size, self.min_samples):
            return np.zeros(len(features), dtype=int)
        model = HDBSCAN(min_cluster_size=self.min_cluster_size, min_samples=self.min_samples, copy=True)
        return without_noise(features, model.fit_predict(features))


def without_noise(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Assigns each update that is noise to the cluster with the nearest centre (our decision).

    Without this step, an update that is noise would belong to no group and wouldn't be averaged.

    Args:
        features: Features of the updates (n, d).
        labels: Cluster of each update (n,), from 0, or -1 for noise. If all updates are noise, they form one cluster.

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
