"""Transfer between clusters. After the aggregation, a cluster's change can be mixed with those of similar clusters."""

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
from flt.algorithm.view import HeldOut, View
from flt.core.errors import InputError

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

Weights = dict[str, Tensor]


class TransferPart(Part):
    """Transfer of changes between clusters, after the aggregation."""

    kind: ClassVar[str] = "transfer"
    mixes: ClassVar[bool] = False
    """True if a cluster's change is mixed with the changes of other clusters."""

    @abc.abstractmethod
    def __call__(self, view: View, new: Mapping[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Returns the weights after the transfer, by group id, for the groups that had updates in this round.

        Args:
            view: View of the round.
            new: Weights that the rule and the server optimiser computed for each of these groups, by group id.
        """

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a transfer if the grouping forms no clusters."""
        if self.mixes and not recipe.grouping.clusters:
            why = "there are no clusters to take over from"
            raise InputError.of("transfer", self.name, "none with grouping=everyone", why)


@dataclasses.dataclass(frozen=True)
class NoTransfer(TransferPart):
    """No transfer: each cluster is trained by its own members alone, as in FL-TAC."""

    def __call__(self, view: View, new: Mapping[int, Weights]) -> dict[int, Weights]:
        """Returns the groups' new weights unchanged."""
        return dict(new)


@dataclasses.dataclass(frozen=True)
class CosineTransfer(TransferPart):
    """Mixes a cluster's change with the changes of clusters that moved in a similar direction (our addition).

    ::

        d_n  <-  (1 - weight) d_n + weight sum_{m != n} s_nm d_m / sum_{m != n} s_nm
        s_nm  =  cos(d_n, d_m) if this is above the threshold, else 0

    d_n is the change of cluster n in this round, over all tensors of the adapter. Heads aren't mixed, since each head
    belongs to one task. A cluster whose s_nm are all 0 keeps its change. If fewer than two clusters had updates,
    nothing is mixed.

    Attributes:
        weight: Share, in [0, 1], of the other clusters in the mixed change. With 0, the result is bit-identical to
            FL-TAC's.
        threshold: Cosine above which the changes of two clusters count as similar.
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
        """Returns the weights after the transfer, by group id, for the groups that had updates in this round."""
        names, gids = view.layout.names(LORA), sorted(new)
        if not self.weight or len(gids) < 2 or not names:
            return dict(new)
        before = {gid: view.group(gid).weights for gid in gids}
        changes = np.stack([_flat(new[gid], names) - _flat(before[gid], names) for gid in gids])
        mixed = mix(changes, self.weight, self.threshold)
        return {gid: new[gid] if row is None else {**new[gid], **_moved(before[gid], names, row)}
                for gid, row in zip(gids, mixed, strict=True)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LearnedTransfer(TransferPart):
    """Mixes a cluster's change with the changes of others, with shares chosen on held-out examples (our addition).

    ::

        d <- d_n
        for each other cluster m, in descending order of cos(d_n, d_m), at most ``most`` of them:
            s_m = the share in {0} + shares for which (1 - s) d + s d_m has the lowest loss
            d <- (1 - s_m) d + s_m d_m

    d_n is the change of cluster n in this round, over all tensors of the adapter. Heads aren't mixed. The loss is the
    mean over held-out examples of the jobs in cluster n. No task label is used. A share other than 0 needs a loss that
    is strictly lower. The loss of the chosen mixture is therefore never above that of the cluster's own change. The
    evaluations cost each cluster 1 + most * len(shares) passes over the examples in each round. A cluster whose jobs
    hold out no examples keeps its own change.

    The held-out examples of clients are also those of the metrics ``clients/*``, which are therefore a little too good.
    Validation and test examples aren't read.

    Attributes:
        shares: Shares, in (0, 1], that are tried.
        most: Largest number of other clusters that are tried for a cluster.
        examples: Largest number of held-out examples of a cluster. Each of its jobs adds equally many.
    """

    mixes: ClassVar[bool] = True

    shares: tuple[float, ...] = (0.1, 0.25, 0.5)
    most: int = 3
    examples: int = 200

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise InputError.of("transfer.shares", list(self.shares), "numbers in (0, 1]")
        for key in ("most", "examples"):
            if getattr(self, key) < 1:
                raise InputError.of(f"transfer.{key}", getattr(self, key), "an integer >= 1")

    @property
    def reads_held_out(self) -> bool:
        """Always True, since the shares are chosen by losses on held-out examples."""
        return True

    def __call__(self, view: View, new: Mapping[int, Weights]) -> dict[int, Weights]:
        """Returns the weights after the transfer, by group id, for the groups that had updates in this round."""
        names, gids = view.layout.names(LORA), sorted(new)
        if view.held_out is None or len(gids) < 2 or not names:
            return dict(new)
        before = {gid: view.group(gid).weights for gid in gids}
        changes = {gid: _flat(new[gid], names) - _flat(before[gid], names) for gid in gids}
        return {gid: self._chosen(view.held_out, gid, new[gid], before[gid], names, changes) for gid in gids}

    def _chosen(
        self, held_out: HeldOut, gid: int, new: Weights, before: Weights, names: Sequence[str],
        changes: Mapping[int, np.ndarray],
    ) -> Weights:  # fmt: skip
        directions = {other: unit(change[None])[0] for other, change in changes.items()}
        others = sorted(set(changes) - {gid}, key=lambda other: (-float(directions[gid] @ directions[other]), other))
        change, best, shares = changes[gid], new, {}
        start = held_out.loss(gid, new, self.examples)
        if start is None:
            return new
        lowest = start
        for other in others[: self.most]:
            own = change
            for share in sorted(self.shares):
                mixed = (1 - share) * own + share * changes[other]
                tried = {**new, **_moved(before, names, mixed)}
                loss = held_out.loss(gid, tried, self.examples)
                if loss is not None and loss < lowest:
                    change, best, lowest, shares[other] = mixed, tried, loss, share
        held_out.record(gid, shares, start - lowest)
        return best


def mix(changes: np.ndarray, weight: float, threshold: float) -> list[np.ndarray | None]:
    """Returns the mixed change (features,) of each cluster. A cluster without similar clusters has None instead.

    Args:
        changes: Changes (clusters, features), float64.
        weight: Share of the other clusters in the mixed change.
        threshold: Cosine above which the changes of two clusters count as similar.

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
