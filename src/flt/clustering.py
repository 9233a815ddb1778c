"""Grouping: who is averaged with whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from flt.errors import InputError
from flt.messages import Update
from flt.view import View

Members = dict[int, list[Update]]


@dataclasses.dataclass(frozen=True)
class Everyone:
    """One group for all jobs."""

    several: ClassVar[bool] = False
    """There can't be more than one group."""

    def __call__(self, view: View, updates: Sequence[Update]) -> Members:
        """Group -> its members among the updates."""
        return {view.state.home: list(updates)} if updates else {}


@dataclasses.dataclass(frozen=True)
class KMeansGrouping:
    """K-means over the uploads, from scratch in each round, without task labels (FL-TAC, arXiv 2404.15384).

    Features are all transmitted tensors at the initial rank, in name order, flattened, float32, not normalised. A
    cluster keeps its identity from round to round: clusters are matched to the groups of the last round so that the
    sum of squared distances is smallest (Hungarian). With at most K uploads, each is a cluster of its own.

    Attributes:
        k: Number of clusters; ``tasks`` stands for the number of tasks in the data.
        n_init: Restarts of k-means, the best of which counts.
    """

    k: int | str = "tasks"
    n_init: int = 10

    def __post_init__(self) -> None:
        if self.k != "tasks" and (not isinstance(self.k, int) or self.k < 1):
            raise InputError.of("grouping.k", self.k, "an integer >= 1, or tasks")
        if self.n_init < 1:
            raise InputError.of("grouping.n_init", self.n_init, "an integer >= 1")

    @property
    def several(self) -> bool:
        """Whether there can be more than one group."""
        return self.k != 1

    def __call__(self, view: View, updates: Sequence[Update]) -> Members:
        """Group -> its members among the updates."""
        if not updates:
            return {}
        if self.k == 1:
            return Everyone()(view, updates)
        features = np.stack([self._features(view, update) for update in updates])
        labels = self._labels(features, int(view.generator().integers(2**31)))
        centroids = np.stack([features[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
        names = match(centroids, self._known(view))
        return {gid: [u for u, at in zip(updates, labels, strict=True) if at == label] for label, gid in names.items()}

    def _labels(self, features: np.ndarray, seed: int) -> np.ndarray:
        assert isinstance(self.k, int), "build fills in the number of tasks"
        if len(features) <= self.k:
            return np.arange(len(features))
        found = KMeans(self.k, n_init=self.n_init, random_state=seed).fit_predict(features)
        return np.unique(found, return_inverse=True)[1]

    def _features(self, view: View, update: Update) -> np.ndarray:
        full = view.full(update)
        return np.concatenate([full[name].float().numpy().ravel() for name in view.travelling])

    def _known(self, view: View) -> dict[int, np.ndarray]:
        groups = view.state.groups
        return {
            gid: np.concatenate([groups[gid].weights[name].float().numpy().ravel() for name in view.travelling])
            for gid in sorted(groups)
            if gid != view.state.home
        }


def match(centroids: np.ndarray, known: Mapping[int, np.ndarray]) -> dict[int, int]:
    """Gives each cluster the id of the group that it continues, or a new one.

    Args:
        centroids: Centres of the clusters (clusters, features).
        known: Group id -> its centre (features,); id 0 is the home of jobs that no grouping has met, and isn't matched.

    Returns:
        Cluster -> group id.

    Example:
        >>> match(np.array([[9.0], [0.0]]), {1: np.array([0.1]), 2: np.array([8.0])})
        {0: 2, 1: 1}
    """
    names: dict[int, int] = {}
    if known:
        gids = sorted(known)
        cost = ((centroids[:, None, :] - np.stack([known[gid] for gid in gids])[None]) ** 2).sum(-1)
        rows, columns = linear_sum_assignment(cost)
        names = {int(row): gids[column] for row, column in zip(rows, columns, strict=True)}
    free = (gid for gid in range(1, len(known) + len(centroids) + 1) if gid not in known)
    return {row: names[row] if row in names else next(free) for row in range(len(centroids))}
