"""Remembers what models measured, so that the same model isn't evaluated twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flt.protocol.messages import Ids


class Memo:
    """Figures by model and data set: those that the last round asked for, and those of this one.

    A data set is told by its identity, so it has to stay where it is. Nothing of it is in a checkpoint: what a resume
    has forgotten it measures again, to the same bits.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], dict[str, float]] = {}
        self._now: dict[tuple[str, int], dict[str, float]] = {}

    def __len__(self) -> int:
        return len({*self._before, *self._now})

    def turn(self) -> None:
        """Begins a round: what the last one didn't ask for is forgotten."""
        self._before, self._now = self._now, {}

    def __call__(self, model: str, dataset: Dataset, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The figures of a model, by its fingerprint; ``evaluate`` is called where there are none yet."""
        key = (model, id(dataset))
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else evaluate()
        return self._now[key]


def fingerprint(version: int, tensors: Mapping[str, Tensor], held: Mapping[str, Ids] | None = None) -> str:
    """Tells models apart: equal for the same tensors, by name and bit, on the same version of the base.

    Args:
        version: Of the base.
        tensors: All that makes the model besides it.
        held: Its pairs, where that isn't all: a private tensor that was never trained has its initial rows.

    Example:
        >>> x = torch.tensor([0.0, 1.0])
        >>> fingerprint(0, {"x": x}) == fingerprint(0, {"x": x.clone()})
        True
        >>> fingerprint(0, {"x": x}) == fingerprint(1, {"x": x})
        False
    """
    digest = hashlib.sha256(repr((version, sorted((held or {}).items()))).encode())
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, flat.dtype, tuple(flat.shape))).encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
