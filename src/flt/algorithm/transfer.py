"""Transfer: after aggregation, each cluster can mix in the updates of related clusters."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from flt.algorithm.base import Part
from flt.algorithm.grouping.features import LORA, unit
from flt.algorithm.view import View
from flt.core.errors import InputError

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

Weights = dict[str, Tensor]


class TransferPart(Part):
    """Transfer of updates between clusters."""

    kind: ClassVar[str] = "transfer"
    mixes: ClassVar[bool] = False
    """True if clusters mix in each other's updates."""

    @abc.abstractmethod
    def __call__(self, view: View, new: Mapping[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Returns the weights of the groups that had members after the transfer.

        Args:
            view: View of the round.
            new: Weights that the rule and the server optimiser computed for each of these groups.
        """

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a federation without clusters."""
        if self.mixes and not recipe.grouping.clusters:
            why = "there are no clusters to take over from"
            raise InputError.of("transfer", self.name, "none with grouping=everyone", why)


@dataclasses.dataclass(frozen=True)
class NoTransfer(TransferPart):
    """Each cluster learns from its own members alone (FL-TAC)."""

    def __call__(self, view: View, new: Mapping[int, Weights]) -> dict[int, Weights]:
        """Returns the groups' new weights unchanged."""
        return dict(new)


@dataclasses.dataclass(frozen=True)
class CosineTransfer(TransferPart):
    """Mixes into a cluster's update the updates of clusters that moved in a similar direction (our reconstruction).

    ::

        d_n  <-  (1 - weight) d_n + weight sum_{m != n} s_nm d_m / sum_{m != n} s_nm
        s_nm  =  cos(d_n, d_m) if this is above the threshold, else 0

    d_n is the round's change of cluster n over all tensors of the adapter. Heads are left out, since each belongs to
    its task. A cluster without related clusters keeps its update. If fewer than two clusters had members, all keep
    theirs.

    Attributes:
        weight: Share of the other clusters' updates, from 0 (FL-TAC, bit-identical) to 1.
        threshold: Cosine above which two clusters are related.
    """

    mixes: ClassVar[bool] = True

    weight: float = 0.1
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError.of("transfer.weight", self.weight, "a number in [0, 1]")
        if not 0 <= self.threshold < 1:
            raise InputError.of("transfer.threshold", self.threshold, "a number in [0, 1)")

    def __call__(self, view: View, new: Mapping[int, Weights]) -> dict[int, Weights]:
        """Returns the weights of the groups that had members, each with its share of the others' updates."""
        names, gids = view.layout.names(LORA), sorted(new)
        if not self.weight or len(gids) < 2 or not names:
            return dict(new)
        before = {gid: view.group(gid).weights for gid in gids}
        changes = np.stack([_flat(new[gid], names) - _flat(before[gid], names) for gid in gids])
        mixed = mix(changes, self.weight, self.threshold)
        return {gid: new[gid] if row is None else {**new[gid], **_moved(before[gid], names, row)}
                for gid, row in zip(gids, mixed, strict=True)}  # fmt: skip


def mix(changes: np.ndarray, weight: float, threshold: float) -> list[np.ndarray | None]:
    """Returns the mixed update (features,) of each cluster; None for a cluster without related clusters.

    Args:
        changes: Updates (clusters, features), float64.
        weight: Share of the other clusters' updates.
        threshold: Cosine above which two clusters are related.

    Example:
        >>> [None if d is None else d.tolist() for d in mix(np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), 0.5, 0.0)]
        [[1.5, 0.0], [1.5, 0.0], None]
    """
    directions = unit(changes)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, 0)
    related = np.where(cosines > threshold, cosines, 0)
    shares = related.sum(axis=1)
    return [(1 - weight) * own + weight * (row @ changes) / share if share > 0 else None
            for own, row, share in zip(changes, related, shares, strict=True)]  # fmt: skip


def _flat(tensors: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names])


def _moved(start: Mapping[str, Tensor], names: Sequence[str], change: np.ndarray) -> Weights:
    ends = np.cumsum([start[name].numel() for name in names])[:-1]
    parts = {name: torch.from_numpy(part).view(start[name].shape)
             for name, part in zip(names, np.split(change, ends), strict=True)}  # fmt: skip
    return {name: (start[name].double() + part).to(start[name].dtype) for name, part in parts.items()}
