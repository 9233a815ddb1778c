"""Base of the clusterings into K clusters. K is given, or chosen by the silhouette."""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from flt.algorithm.grouping.base import Clustering
from flt.core.errors import InputError
from flt.protocol.messages import JobId


@dataclasses.dataclass(frozen=True)
class KClustering(Clustering):
    """Base of the clusterings into K clusters. With at most K updates, each update is its own cluster.

    Attributes:
        k: Number K of clusters: an integer, ``tasks`` or ``silhouette``. ``tasks``: the number of tasks in the data.
            ``silhouette``: the number from 2 to ``max_k`` whose clusters have the highest silhouette (Rousseeuw, 1987),
            or 1 (see ``min_silhouette``).
        max_k: Largest number of clusters with ``k: silhouette``.
        min_silhouette: Lower limit for the silhouette with ``k: silhouette``. If no number of clusters has a silhouette
            above this limit, all updates form one cluster. Fewer than three updates also form one cluster, since a
            silhouette needs three. Random directions in 1,000 or more dimensions have a silhouette below 0.02.
        cannot_link: If True, the jobs that one client has in a round are put into different clusters, since they belong
            to different tasks (our reconstruction). If a client has n jobs, there are then at least n clusters.
    """

    k: int | str = "tasks"
    max_k: int = dataclasses.field(default=10, kw_only=True)
    min_silhouette: float = dataclasses.field(default=0.02, kw_only=True)
    cannot_link: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k not in ("tasks", "silhouette") and (not isinstance(self.k, int) or self.k < 1):
            raise InputError.of("grouping.k", self.k, "an integer >= 1, tasks, or silhouette")
        if self.max_k < 2:
            raise InputError.of("grouping.max_k", self.max_k, "an integer >= 2")
        if not -1 <= self.min_silhouette < 1:
            raise InputError.of("grouping.min_silhouette", self.min_silhouette, "a number in [-1, 1)")

    @property
    def several(self) -> bool:
        """True if there can be more than one group."""
        return self.k != 1

    @property
    def finds_number(self) -> bool:
        """True if the clustering itself determines the number of clusters; False if the number is given."""
        return self.k == "silhouette"

    @property
    def separates_jobs(self) -> bool:
        """True if the jobs that one client has in a round are always in different clusters."""
        return self.cannot_link

    def check(self, jobs: int) -> None:
        """Raises InputError if a client with this number of jobs needs more clusters than are allowed."""
        key, most = ("max_k", self.max_k) if self.k == "silhouette" else ("k", self.k)
        if self.cannot_link and isinstance(most, int) and jobs > most:
            why = f"cannot_link puts the {jobs} jobs of one client in different clusters"
            raise InputError.of(f"grouping.{key}", most, f"an integer >= {jobs}", why)

    @abc.abstractmethod
    def cut(self, features: np.ndarray, clients: Sequence[int], k: int, seed: int) -> np.ndarray:
        """Divides n updates into k clusters. The caller ensures that n > k >= 2.

        Args:
            features: Features of the updates (n, d).
            clients: Client of each update.
            k: Number of clusters.
            seed: Seed of the clustering.

        Returns:
            The cluster of each update (n,).
        """

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Returns the cluster of each update (n,)."""
        clients = [client for client, _ in jobs]
        least = max(Counter(clients).values()) if self.cannot_link else 1

        def cut(k: int) -> np.ndarray:
            if len(features) <= k:
                return np.arange(len(features))
            return renumbered(self.cut(features, clients, k, seed))

        if self.k == "silhouette":
            return most_separate(features, cut, least, self.max_k, self.min_silhouette)
        assert isinstance(self.k, int), "build fills in the number of tasks"
        return cut(self.k)


def most_separate(
    features: np.ndarray, cut: Callable[[int], np.ndarray], least: int, most: int, enough: float
) -> np.ndarray:
    """Returns the cluster of each update (n,) for the number of clusters with the highest silhouette.

    If silhouettes are equal, the smallest number of clusters is taken.

    Args:
        features: Features of the updates (n, d).
        cut: Function that returns the cluster of each update for a given number of clusters.
        least: Smallest number of clusters. If it is 1, all updates form one cluster unless a silhouette exceeds
            ``enough``. The limit ``enough`` is needed because a single cluster has no silhouette.
        most: Largest number of clusters.
        enough: Lower limit for the silhouette; only used if ``least`` is 1.
    """
    from sklearn.metrics import silhouette_score  # slow import, only needed here

    best = np.zeros(len(features), dtype=int) if least == 1 else cut(least)
    score = enough if least == 1 else -np.inf
    for k in range(max(2, least), min(most, len(features) - 1) + 1):
        labels = cut(k)
        if 1 < labels.max() + 1 < len(features):
            value = float(silhouette_score(features, labels))
            best, score = (labels, value) if value > score else (best, score)
    return best


def renumbered(labels: np.ndarray) -> np.ndarray:
    """Returns the same clusters, numbered from 0 without gaps."""
    return np.unique(labels, return_inverse=True)[1]
