"""Packing of the real tokens of a batch, so that blocks don't compute padding, or queries that no head reads.

From the first block to the last, real tokens lie one behind another, (1, tokens, width), so that all layers that work
token by token never see padding. Attention mixes tokens, and gets the rows of the batch again.
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
"""Share of real tokens above which a batch isn't packed: packing costs a twentieth of computing the tokens."""


class _SelectRows(torch.autograd.Function):
    """Selects x[index]. Backward selects too, and adds nothing: the gradient of row i is row ``inverse[i]``.

    This is right if every row gets its gradient from one place only. Rows in ``zeroed`` get the gradient 0.
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
    """Positions of the real tokens of a batch, among (rows, length) positions.

    Attributes:
        shape: Rows and length.
        real: (tokens,) positions of real tokens, row by row.
        padding: Positions of padding.
        token: (rows * length,) number of the token at each position; 0 at padding.
        row: (tokens,) row of each token.
        starts: (rows,) number of the first token of each row.
        counts: Number of tokens of each job.
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
        """Returns the packing of a batch; None if it has one row or little padding, or if rows begin with padding.

        Args:
            mask: (jobs * rows, length), 0 at padding; None: no padding.
            jobs: Number of jobs, whose rows follow each other.
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
        """Packs (rows, length, ...) to (1, tokens, ...)."""
        return _SelectRows.apply(x.flatten(0, 1), self.real, self.token, self.padding).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """Unpacks (1, tokens, ...) to (rows, length, ...); the values at padding are arbitrary, but finite."""
        return _SelectRows.apply(x[0], self.token, self.real, None).unflatten(0, self.shape)

    def spread(self, x: Tensor) -> Tensor:
        """Copies (rows, ...) to all tokens of each row, (1, tokens, ...); only the first token's gradient counts."""
        return _SelectRows.apply(x, self.row, self.starts, None).unsqueeze(0)


class TokenPacker(TorchFunctionMode):
    """Packs the tokens of a forward pass, and computes attention on packed tokens.

    Attributes:
        packing: Packing of the batch; None: the batch isn't packed.
        packed: True while activations are packed.
        one_query: True while attention computes only the query of each row's first token.
        left_packed: True if the activations were packed when they left the last block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packing: Packing | None = None
        self.packed = self.one_query = self.left_packed = False

    def begin(self, mask: Tensor | None, jobs: int) -> None:
        """Called before each forward pass; see :meth:`Packing.of` for the arguments."""
        self.packing = Packing.of(mask, jobs)
        self.packed = self.one_query = self.left_packed = False

    def counts(self, x: Tensor) -> Sequence[int] | None:
        """Returns the number of tokens of each job in activations (1, tokens, ...); None if they aren't packed."""
        packing = self._packing_of(x)
        return None if packing is None else packing.counts

    def pack(self, x: Tensor) -> Tensor:
        """Packs activations (rows, length, width) to (1, tokens, width), if the batch has a packing."""
        self.packed = self.packing is not None and x.shape[:2] == self.packing.shape
        return self.packing.pack(x) if self.packing is not None and self.packed else x

    def pack_positions(self, x: Tensor) -> Tensor:
        """Packs values of each position, (rows or 1, length, ...), if activations are packed."""
        if not self.packed or self.packing is None:
            return x
        return self.packing.pack(x.expand(self.packing.shape[0], *x.shape[1:]))

    def unpack(self, x: Tensor) -> Tensor:
        """Reverses :meth:`pack`."""
        packing = self._packing_of(x)
        self.packed, self.left_packed = False, self.left_packed or packing is not None
        return x if packing is None else packing.unpack(x)

    def keep_first(self, x: Tensor) -> Tensor:
        """Returns each row's first token, (rows, 1, width); the layers behind compute only these tokens."""
        self.one_query, self.left_packed = False, self._packing_of(x) is not None
        return self.first_tokens(x)

    def first_tokens(self, x: Tensor) -> Tensor:
        """Returns each row's first token, (rows, 1, width)."""
        packing = self._packing_of(x)
        return x[:, :1] if packing is None else x[0].index_select(0, packing.starts).unsqueeze(1)

    def spread(self, x: Tensor, like: Tensor) -> Tensor:
        """Copies (rows, 1, ...) to all tokens of ``like``; only the first token of each row may be used afterwards."""
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
        """Computes attention of (rows, heads, length, n), or of packed (1, heads, tokens, n)."""
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
