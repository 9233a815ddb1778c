"""Memory of evaluation results. It avoids evaluating the same model twice on the same data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flt.protocol.messages import Ids


class Memo:
    """Metrics of evaluated models. Metrics that were used neither in this round nor in the previous one are forgotten.

    A model is identified by its :func:`fingerprint`, and a data set by Python's ``id``. The caller must therefore keep
    the data sets in memory. Checkpoints don't contain these metrics: after a resume the models are evaluated again, and
    the metrics are bit-identical.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], dict[str, float]] = {}
        self._now: dict[tuple[str, int], dict[str, float]] = {}

    def __len__(self) -> int:
        return len({*self._before, *self._now})

    def turn(self) -> None:
        """Begins a round, and forgets the metrics that weren't used in the previous round."""
        self._before, self._now = self._now, {}

    def __call__(self, model: str, dataset: Dataset, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Returns the metrics of the model with the fingerprint ``model``. Calls ``evaluate`` if none are stored."""
        key = (model, id(dataset))
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else evaluate()
        return self._now[key]


def fingerprint(version: int, tensors: Mapping[str, Tensor], held: Mapping[str, Ids] | None = None) -> str:
    """Returns a hash of a model. Models have equal hashes if they have bit-identical tensors on the same base version.

    Args:
        version: Version of the base.
        tensors: Name -> tensor of the model. Base weights aren't included.
        held: Layer -> ids of the components that the model has. Needed only if ``tensors`` lacks private tensors that
            were never trained. Such tensors still have their initial values, and the ids determine these values. Pass
            None if no tensor is missing.

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
