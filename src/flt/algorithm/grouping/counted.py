"""Clusterings into a given number of clusters, or one that the silhouette chooses."""

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
class Counted(Clustering):
    """K clusters; with at most K uploads, each is a cluster of its own.

    Attributes:
        k: Number of clusters; ``tasks`` stands for the number of tasks in the data, ``silhouette`` for the number among
            2 .. ``max_k`` whose clusters have the highest silhouette (Rousseeuw, 1987) on the same features.
        max_k: Most clusters of ``silhouette``.
        min_silhouette: With ``silhouette``, a higher one is needed for more than one cluster. A silhouette needs three
            uploads, so fewer are one cluster. Random directions stay below 0.02 in 1,000 dimensions and more.
        cannot_link: One client's jobs of the same round end in different clusters, since they are different tasks (our
            reconstruction). Then one cluster isn't an answer for a client with two jobs, whatever the silhouette.
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
        """Whether there can be more than one group."""
        return self.k != 1

    @property
    def open(self) -> bool:
        """Whether the number of clusters is found, and not given."""
        return self.k == "silhouette"

    @property
    def apart(self) -> bool:
        """Whether one client's jobs of a round are in different clusters."""
        return self.cannot_link

    def check(self, jobs: int) -> None:
        """Raises InputError where a client with so many jobs needs more clusters than there are."""
        key, most = ("max_k", self.max_k) if self.k == "silhouette" else ("k", self.k)
        if self.cannot_link and isinstance(most, int) and jobs > most:
            why = f"cannot_link puts the {jobs} jobs of one client in different clusters"
            raise InputError.of(f"grouping.{key}", most, f"an integer >= {jobs}", why)

    @abc.abstractmethod
    def cut(self, features: np.ndarray, clients: Sequence[int], k: int, seed: int) -> np.ndarray:
        """The cluster of each upload (n,), of features (n, d), n > k >= 2; ``clients`` are the uploads' clients."""

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """The cluster of each upload (n,)."""
        clients = [client for client, _ in jobs]
        least = max(Counter(clients).values()) if self.cannot_link else 1

        def cut(k: int) -> np.ndarray:
            if len(features) <= k:
                return np.arange(len(features))
            return numbered(self.cut(features, clients, k, seed))

        if self.k == "silhouette":
            return most_separate(features, cut, least, self.max_k, self.min_silhouette)
        assert isinstance(self.k, int), "build fills in the number of tasks"
        return cut(self.k)


def most_separate(
    features: np.ndarray, cut: Callable[[int], np.ndarray], least: int, most: int, enough: float
) -> np.ndarray:
    """The clusters with the highest silhouette; of equals the fewest.

    Args:
        features: Of the uploads (n, d).
        cut: Number of clusters -> the cluster of each upload.
        least: Fewest clusters; one cluster, which has no silhouette, is an answer where it is 1.
        most: Most clusters.
        enough: What a silhouette has to exceed for more than one cluster.
    """
    from sklearn.metrics import silhouette_score  # a second of its own, for those who group

    best = np.zeros(len(features), dtype=int) if least == 1 else cut(least)
    score = enough if least == 1 else -np.inf
    for k in range(max(2, least), min(most, len(features) - 1) + 1):
        found = cut(k)
        if 1 < found.max() + 1 < len(features):
            value = float(silhouette_score(features, found))
            best, score = (found, value) if value > score else (best, score)
    return best


def numbered(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered from 0 without gaps."""
    return np.unique(labels, return_inverse=True)[1]
