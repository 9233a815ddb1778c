"""Packing of the real tokens of a batch (tokens that aren't padding), so that blocks don't compute padding.

From the first block to the last, the activations of all real tokens are in one tensor of shape (1, tokens, width).
Layers that treat each token separately therefore compute no padding. Attention must not mix tokens of different rows of
the batch. For attention, the activations are therefore unpacked to shape (rows, length, width).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MAX_REAL_SHARE = 0.95
"""Share of real tokens above which a batch isn't packed.

Packing a batch takes about a twentieth of the time that the computation of its tokens takes.
"""


class _SelectRows(torch.autograd.Function):
    """Returns the rows x[index]. The gradient of row i of x is row ``inverse[i]`` of the output's gradient.

    Rows of x whose positions are in ``zeroed`` get the gradient 0. If several output rows are copies of one row of x,
    only one of their gradients is used. The other gradients are ignored.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, zeroed: Tensor | None) -> Tensor:
        ctx.inverse, ctx.zeroed = inverse, zeroed
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows = gradient.index_select(0, ctx.inverse)
        return rows if ctx.zeroed is None else rows.index_fill_(0, ctx.zeroed, 0), None, None, None


@dataclasses.dataclass(frozen=True)
class Packing:
    """Positions of the real tokens in a batch of shape (rows, length). Positions are counted row by row.

    Attributes:
        shape: Shape of the batch, (rows, length).
        real: Position of each real token in the batch, shape (tokens,).
        padding: Positions of padding in the batch.
        token: For each position in the batch, the token's index among the real tokens; 0 at padding. Shape
            (rows * length,).
        row: Row of each real token, shape (tokens,).
        starts: Index of each row's first token among the real tokens, shape (rows,).
        counts: Number of real tokens of each job.
    """

    shape: tuple[int, int]
    real: Tensor
    padding: Tensor
    token: Tensor
    row: Tensor
    starts: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, mask: Tensor | None, jobs: int) -> Packing | None:
        """Returns the packing of a batch.

        Returns None for a batch that isn't packed. This is a batch that has a single row or little padding, or in which
        a row begins with padding.

        Args:
            mask: Attention mask (jobs * rows, length), 0 at padding; None if the batch has no padding.
            jobs: Number of jobs. The rows of the first job come first, then those of the second.
        """
        if mask is None or mask.dim() != 2 or len(mask) < 2:
            return None
        flat = mask.bool().flatten()
        real = flat.nonzero().squeeze(1)
        if len(real) > MAX_REAL_SHARE * len(flat) or not mask[:, 0].all():
            return None
        rows, length = mask.shape
        token = (flat.cumsum(0) - 1) * flat
        counts = mask.bool().view(jobs, -1).sum(1).tolist()
        padding = (~flat).nonzero().squeeze(1)
        return cls((rows, length), real, padding, token, real // length, token[::length].contiguous(), tuple(counts))

    def pack(self, x: Tensor) -> Tensor:
        """Packs a tensor (rows, length, ...) to (1, tokens, ...)."""
        return _SelectRows.apply(x.flatten(0, 1), self.real, self.token, self.padding).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """Unpacks (1, tokens, ...) to (rows, length, ...). Padding gets the values of the first real token."""
        return _SelectRows.apply(x[0], self.token, self.real, None).unflatten(0, self.shape)

    def spread(self, x: Tensor) -> Tensor:
        """Copies the value of each row to all tokens of the row: from (rows, ...) to (1, tokens, ...).

        The gradient of a row's value is the gradient at the row's first token. Gradients at other tokens are ignored.
        """
        return _SelectRows.apply(x, self.row, self.starts, None).unsqueeze(0)


class TokenPacker(TorchFunctionMode):
    """Packs the tokens of a forward pass. In the packer's context, PyTorch's attention accepts packed tokens.

    Attributes:
        packing: Packing of the current batch; None if the batch isn't packed.
        packed: True while the activations are packed.
        one_query: True while attention computes the result only for the first token of each row.
        left_packed: True if the activations were still packed at the end of the last block, or when all tokens except
            the first of each row were dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packing: Packing | None = None
        self.packed = self.one_query = self.left_packed = False

    def begin(self, mask: Tensor | None, jobs: int) -> None:
        """Computes the packing of a batch by :meth:`Packing.of`. Called before each forward pass."""
        self.packing = Packing.of(mask, jobs)
        self.packed = self.one_query = self.left_packed = False

    def counts(self, x: Tensor) -> Sequence[int] | None:
        """Returns each job's number of tokens in packed activations x (1, tokens, ...), or None if x isn't packed."""
        packing = self._packing_of(x)
        return None if packing is None else packing.counts

    def pack(self, x: Tensor) -> Tensor:
        """Packs activations (rows, length, width) to (1, tokens, width). Without ``packing``, returns x unchanged."""
        self.packed = self.packing is not None and x.shape[:2] == self.packing.shape
        return self.packing.pack(x) if self.packing is not None and self.packed else x

    def pack_positions(self, x: Tensor) -> Tensor:
        """Packs one value per position, (rows or 1, length, ...). If activations aren't packed, returns x unchanged."""
        if not self.packed or self.packing is None:
            return x
        return self.packing.pack(x.expand(self.packing.shape[0], *x.shape[1:]))

    def unpack(self, x: Tensor) -> Tensor:
        """Unpacks activations (1, tokens, width) to (rows, length, width). If x isn't packed, returns x unchanged."""
        packing = self._packing_of(x)
        self.packed, self.left_packed = False, self.left_packed or packing is not None
        return x if packing is None else packing.unpack(x)

    def keep_first(self, x: Tensor) -> Tensor:
        """Returns only each row's first token, (rows, 1, width), so that later layers compute no other tokens."""
        self.one_query, self.left_packed = False, self._packing_of(x) is not None
        return self.first_tokens(x)

    def first_tokens(self, x: Tensor) -> Tensor:
        """Returns each row's first token, (rows, 1, width)."""
        packing = self._packing_of(x)
        return x[:, :1] if packing is None else x[0].index_select(0, packing.starts).unsqueeze(1)

    def spread(self, x: Tensor, like: Tensor) -> Tensor:
        """Copies each row's value, (rows, 1, ...), to all tokens of the row.

        The result is packed if ``like`` is packed. Only the value at the first token of each row may be used
        afterwards; see :meth:`Packing.spread`.
        """
        packing = self._packing_of(like)
        return x.expand(-1, like.shape[1], *x.shape[2:]) if packing is None else packing.spread(x[:, 0])

    def _packing_of(self, x: Tensor) -> Packing | None:
        packing = self.packing
        return packing if self.packed and packing is not None and x.shape[:2] == (1, len(packing.real)) else None

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and (self.packed or self.one_query):
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Computes attention for inputs (rows, heads, length, n), or for packed inputs (1, heads, tokens, n)."""
        tokens, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        packing = self._packing_of(tokens)
        if packing is not None:
            key, value = packing.unpack(key), packing.unpack(value)
        if self.one_query:
            queries = self.first_tokens(tokens)
            attn_mask = attn_mask if attn_mask is None else attn_mask[..., :1, :]
        else:
            queries = tokens if packing is None else packing.unpack(tokens)
        out = F.scaled_dot_product_attention(
            queries.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask, **options
        ).transpose(1, 2)
        if self.one_query:
            out = self.spread(out, tokens)
        elif packing is not None:
            out = packing.pack(out)
        return out.transpose(1, 2)
