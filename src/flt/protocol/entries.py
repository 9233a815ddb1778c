"""Descriptions of a tensor and of a layer with LoRA, of which the layout of a module consists."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Entry:
    """Description of one tensor."""

    role: str
    """Kind of the tensor: ``A``, ``B``, ``adapter`` (part of an adapter other than LoRA), ``head``, ``base``,
    ``buffer`` or ``fixed``."""
    shape: tuple[int, ...]
    """Shape of the tensor at the initial rank."""
    layer: str = ""
    """Name of the adapted layer that A or B belongs to; empty for other tensors."""
    axis: int | None = None
    """Index of the rank axis: 0 for A of shape (r, in), 1 for B of shape (out, r), None for other tensors."""
    variant: str = ""
    """Name of the head that the tensor belongs to, if jobs have different heads; else empty."""
    dtype: torch.dtype | None = None
    """Type of the numbers of a buffer; None for other tensors, which are numbers in floating point."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """Description of one layer with LoRA: W = W0 + scale B A, or such a sum of convolutions."""

    rank: int
    """Initial rank r. The ids of the layer's rank-1 components are 0 .. r - 1."""
    scale: float
    """Factor alpha / r for the initial rank r. It is the same on every client and in every round."""
    base: str
    """Name of W0."""
    a: str
    """Name of A, which has the shape (r, in), or (r, in, ...) if the layer is a convolution."""
    b: str
    """Name of B, which has the shape (out, r), or (out, r, ...) if the layer is a convolution."""
    transposed: bool = False
    """True if W0 is stored as (in, out), as in GPT-2's Conv1D."""
    matrices: bool = True
    """True if W0, A and B are matrices, so that B A can be formed and added to W0. Parts that do this need it."""

    def stored(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two factors whose product has the shape of the stored W0.

        If W0 is stored as (in, out), the factors are swapped and transposed. Otherwise, they are returned unchanged.

        Args:
            left: First factor of a change of W0, shape (out, n).
            right: Second factor of the change, shape (n, in).
        """
        return (right.T.contiguous(), left.T.contiguous()) if self.transposed else (left, right)
