"""The tokens of a batch that are computed: padding isn't, and where no head reads the others, one query alone.

Real tokens lie one behind another, (1, tokens, width), from the first block to the last, so that all that works token
by token never sees padding. Attention, which doesn't, is given its rows back.
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

MOST = 0.95
"""Share of real tokens above which they stay where they are: moving them costs a twentieth of what they cost."""


class _Rows(torch.autograd.Function):
    """x[index], in whose gradient nothing is summed: that of row i is row ``back[i]`` of what comes back.

    That is right where no row's gradient comes from two places. Rows in ``without`` have none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, without: Tensor | None) -> Tensor:
        ctx.back, ctx.without = back, without
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = gradient.index_select(0, ctx.back)
        return found if ctx.without is None else found.index_fill_(0, ctx.without, 0), None, None, None


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where a batch's real tokens are, of (rows, length) places.

    Attributes:
        shape: Rows and length.
        real: (tokens,) the places of real tokens, row by row.
        padding: The other places.
        token: (rows * length,) of each place which token is there; 0 for padding.
        row: (tokens,) of each token its row.
        starts: (rows,) the first token of each row.
        counts: Tokens of each job.
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
        """The packing of a batch; None where little would be saved, as in one row alone, or rows begin with padding.

        Args:
            mask: (jobs * rows, length), 0 where padding is; None: there is none.
            jobs: Whose rows follow each other.
        """
        if mask is None or mask.dim() != 2 or len(mask) < 2:
            return None
        flat = mask.bool().flatten()
        real = flat.nonzero().squeeze(1)
        if len(real) > MOST * len(flat) or not mask[:, 0].all():
            return None
        rows, length = mask.shape
        token = (flat.cumsum(0) - 1) * flat
        counts = mask.bool().view(jobs, -1).sum(1).tolist()
        padding = (~flat).nonzero().squeeze(1)
        return cls((rows, length), real, padding, token, real // length, token[::length].contiguous(), tuple(counts))

    def pack(self, x: Tensor) -> Tensor:
        """(rows, length, ...) -> (1, tokens, ...)."""
        return _Rows.apply(x.flatten(0, 1), self.real, self.token, self.padding).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """(1, tokens, ...) -> (rows, length, ...), in which padding holds whatever is finite."""
        return _Rows.apply(x[0], self.token, self.real, None).unflatten(0, self.shape)

    def spread(self, x: Tensor) -> Tensor:
        """(rows, ...) -> (1, tokens, ...): each token has its row's; only what the first does with it may count."""
        return _Rows.apply(x, self.row, self.starts, None).unsqueeze(0)


class Tokens(TorchFunctionMode):
    """Which tokens a forward pass is given, and what attention makes of them.

    Attributes:
        packing: Of the batch; None: its rows stay as they are.
        packed: Whether activations are packed at the moment.
        one_query: Whether attention is asked for the first token of each row alone at the moment.
        came_packed: Whether activations have come out of the last block packed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packing: Packing | None = None
        self.packed = self.one_query = self.came_packed = False

    def begin(self, mask: Tensor | None, jobs: int) -> None:
        """Called before each forward pass: see :meth:`Packing.of`."""
        self.packing = Packing.of(mask, jobs)
        self.packed = self.one_query = self.came_packed = False

    def counts(self, x: Tensor) -> Sequence[int] | None:
        """Tokens of each job in (1, tokens, ...) activations; None where they aren't packed."""
        packing = self._of(x)
        return None if packing is None else packing.counts

    def pack(self, x: Tensor) -> Tensor:
        """Activations (rows, length, width) without padding, (1, tokens, width), where the batch has enough of it."""
        self.packed = self.packing is not None and x.shape[:2] == self.packing.shape
        return self.packing.pack(x) if self.packing is not None and self.packed else x

    def pack_too(self, x: Tensor) -> Tensor:
        """What belongs to each place, (rows or 1, length, ...), packed where activations are."""
        if not self.packed or self.packing is None:
            return x
        return self.packing.pack(x.expand(self.packing.shape[0], *x.shape[1:]))

    def unpack(self, x: Tensor) -> Tensor:
        """The reverse of :meth:`pack`."""
        packing = self._of(x)
        self.packed, self.came_packed = False, self.came_packed or packing is not None
        return x if packing is None else packing.unpack(x)

    def alone(self, x: Tensor) -> Tensor:
        """Each row's first token, (rows, 1, width), which goes on alone."""
        self.one_query, self.came_packed = False, self._of(x) is not None
        return self.firsts(x)

    def firsts(self, x: Tensor) -> Tensor:
        """Each row's first token, (rows, 1, width)."""
        packing = self._of(x)
        return x[:, :1] if packing is None else x[0].index_select(0, packing.starts).unsqueeze(1)

    def spread(self, x: Tensor, like: Tensor) -> Tensor:
        """(rows, 1, ...) as the row's value for each token of ``like``; only what the first does with it may count."""
        packing = self._of(like)
        return x.expand(-1, like.shape[1], *x.shape[2:]) if packing is None else packing.spread(x[:, 0])

    def _of(self, x: Tensor) -> Packing | None:
        packing = self.packing
        return packing if self.packed and packing is not None and x.shape[:2] == (1, len(packing.real)) else None

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and (self.packed or self.one_query):
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        """Of (rows, heads, length, n), or packed (1, heads, tokens, n)."""
        tokens, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        packing = self._of(tokens)
        if packing is not None:
            key, value = packing.unpack(key), packing.unpack(value)
        if self.one_query:
            asked = self.firsts(tokens)
            attn_mask = attn_mask if attn_mask is None else attn_mask[..., :1, :]
        else:
            asked = tokens if packing is None else packing.unpack(tokens)
        out = F.scaled_dot_product_attention(
            asked.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask, **how
        ).transpose(1, 2)
        if self.one_query:
            out = self.spread(out, tokens)
        elif packing is not None:
            out = packing.pack(out)
        return out.transpose(1, 2)
