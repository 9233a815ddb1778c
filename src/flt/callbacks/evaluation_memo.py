"""Memory of evaluation results, which avoids evaluating the same model twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flt.protocol.messages import Ids


class Memo:
    """Figures by model and data set, as used in the last round and in this round.

    A data set is identified by its ``id``, and must therefore stay alive. Checkpoints don't contain the figures: after
    a resume the models are evaluated again, with the same bits as the result.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], dict[str, float]] = {}
        self._now: dict[tuple[str, int], dict[str, float]] = {}

    def __len__(self) -> int:
        return len({*self._before, *self._now})

    def turn(self) -> None:
        """Begins a round and forgets the figures that the last round didn't use."""
        self._before, self._now = self._now, {}

    def __call__(self, model: str, dataset: Dataset, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Returns the figures of the model with this fingerprint; calls ``evaluate`` if they aren't known yet."""
        key = (model, id(dataset))
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else evaluate()
        return self._now[key]


def fingerprint(version: int, tensors: Mapping[str, Tensor], held: Mapping[str, Ids] | None = None) -> str:
    """Returns a hash of a model: equal for tensors with equal names and bits on the same version of the base.

    Args:
        version: Version of the base.
        tensors: All tensors of the model apart from the base.
        held: Layer -> component ids that the model has, needed if ``tensors`` doesn't hold every tensor of the model: a
            private tensor that was never trained has the initial rows of these components.

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
