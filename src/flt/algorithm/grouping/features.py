"""Features by which a round's updates are clustered, and helpers for arrays of shape (updates, features)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from flt.algorithm.view import View
from flt.protocol.layout import LORA_FACTORS, TRAVELLING, Layout
from flt.protocol.messages import Update

TENSORS = ("all", "lora")
LORA = (*LORA_FACTORS, "adapter")
"""Roles that ``tensors: lora`` stands for: an adapter of any kind, without the head."""


def names(layout: Layout, tensors: str) -> list[str]:
    """Returns the names of the tensors that are clustered, in order.

    Args:
        layout: Layout of the server's tensors.
        tensors: ``all``: all tensors that every job has, except base weights. ``lora``: only the adapter's tensors.
    """
    roles = LORA if tensors == "lora" else TRAVELLING
    return [name for name in layout.names(roles) if not layout.entries[name].variant]


def weights(view: View, updates: Sequence[Update], names: Sequence[str]) -> np.ndarray:
    """Returns the flattened weights that the clients sent, as in FL-TAC (arXiv 2404.15384, authors' code).

    The features contain only the active components of A and B. They aren't normalised.

    Returns:
        Features (updates, features), float32.
    """
    return np.stack([_flat(view, view.full(update), names) for update in updates])


def changes(view: View, updates: Sequence[Update], names: Sequence[str]) -> np.ndarray:
    """Returns the centred changes d that local training made to the weights (our reconstruction).

    ::

        d_i = c_i - mean_j c_j        c_i = (weights that job i sent) - (weights that job i received)

    The clustering later scales each d_i to unit length. If an update's change equals the mean, which is
    always true for a single update, d = 0. Inactive components count as unchanged, so that the number of features is
    the same in all rounds.

    Returns:
        The centred changes d (updates, features), float32.
    """
    return centred(np.stack([_changed(view, update, names) for update in updates])).astype(np.float32)


KINDS = ("weights", "changes")


def groups(view: View, names: Sequence[str]) -> dict[int, np.ndarray]:
    """Returns the weights (features,) of each group before the round, by group id, without the home group."""
    known = view.state.groups
    return {gid: _flat(view, known[gid].weights, names) for gid in sorted(known) if gid != view.state.home}


def home(view: View, names: Sequence[str]) -> np.ndarray:
    """Returns the weights v0 (features,) of the home group, from which unassigned jobs start."""
    return _flat(view, view.state.groups[view.state.home].weights, names)


def distances_to_groups(
    view: View, updates: Sequence[Update], names: Sequence[str], kind: str
) -> tuple[list[int], np.ndarray]:
    """Returns the distance of each unassigned job's update from each group except the home group.

    Args:
        view: View of the state before aggregation.
        updates: Updates of jobs that were sent the home group's weights v0.
        names: Names of the tensors to compare.
        kind: ``weights``: the distance is the squared Euclidean distance from the group's weights. ``changes``: the
            distance is -cos(x, y). x is the job's change from v0. y is the group's displacement from v0, minus the mean
            displacement of all groups.

    Returns:
        Ids of the groups, ascending, and the distances (updates, groups).
    """
    known, sent = groups(view, names), weights(view, updates, names).astype(np.float64)
    centres = np.stack([known[gid] for gid in known]).astype(np.float64)
    if kind == "weights":
        return list(known), squared_distances(sent, centres)
    start = home(view, names)
    return list(known), -unit(sent - start) @ unit(centred(centres - start)).T


def centroids(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the mean of each cluster (clusters, features). The labels must be numbered from 0 without gaps."""
    return np.stack([features[labels == label].mean(axis=0) for label in range(labels.max() + 1)])


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns the squared Euclidean distances between float64 points and centres, shape (points, centres).

    Example:
        >>> squared_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))
        array([[25.]])
    """
    lengths = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    return np.maximum(lengths - 2 * points @ centres.T, 0)


def centred(features: np.ndarray) -> np.ndarray:
    """Subtracts the mean of all rows from each row, in float64."""
    rows = features.astype(np.float64)
    return rows - rows.mean(axis=0)


def unit(features: np.ndarray) -> np.ndarray:
    """Scales each row to length 1. A row of zeros stays zero."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def _flat(view: View, tensors: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    active = (view.layout.take(name, tensors[name], view.state.active) for name in names)
    return _joined(tensor.float().numpy().ravel() for tensor in active)


def _changed(view: View, update: Update, names: Sequence[str]) -> np.ndarray:
    after, before = view.full(update), view.sent_to(update.job)
    return _joined((after[name].float() - before[name].float()).numpy().ravel() for name in names)


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *parts])  # with an oracle, ``parts`` can be empty
