"""What each job's LoRA adds to a frozen layer's output, in place, with a backward pass that copies no activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LowRank(torch.autograd.Function):
    """out + scale x A^T B^T, in which each job's tokens meet its own A and B; ``out`` is what holds the result.

    Autograd's own backward of the same products takes the output apart by jobs and puts the gradients together again,
    two passes over the activations, and computes B's gradient along the wrong axis, at a third of the rate.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, counts: Sequence[int] | None
    ) -> Tensor:
        """Adds.

        Args:
            ctx: Autograd's.
            out: (tokens, out) what the frozen layer made of x; no view of another tensor, or its gradient is copied.
            x: (tokens, in), the first job's, then the second's.
            a: (jobs, r, in).
            b: (jobs, out, r).
            scale: Of all of them.
            counts: Tokens of each job; None: equally many.
        """
        inner = x.new_empty(len(x), a.shape[1])
        _add(inner, x, a.transpose(1, 2), counts, beta=0)
        _add(out, inner, b.transpose(1, 2), counts, alpha=scale)
        ctx.save_for_backward(x, inner, a, b)
        ctx.scale, ctx.counts = scale, counts
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the forward's arguments."""
        x, inner, a, b = ctx.saved_tensors
        of_out, of_x, of_a, of_b = ctx.needs_input_grad[:4]
        found_x = found_a = found_b = None
        if of_b:
            found_b = _products(inner, gradient, ctx.counts, len(b)).mul_(ctx.scale).transpose(1, 2)
        if of_a or of_x:
            outer = torch.empty_like(inner)  # (tokens, r)
            _add(outer, gradient, b, ctx.counts, alpha=ctx.scale, beta=0)
            if of_a:
                found_a = _products(outer, x, ctx.counts, len(a))
            if of_x:
                found_x = torch.empty_like(x)
                _add(found_x, outer, a, ctx.counts, beta=0)
        return gradient if of_out else None, found_x, found_a, found_b, None, None


def _add(
    out: Tensor, x: Tensor, w: Tensor, counts: Sequence[int] | None, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """beta out + alpha x w, in place: (tokens, n), (tokens, m) and (jobs, m, n)."""
    if counts is None:
        by_job = out.view(_by_job(out, len(w)))
        by_job.baddbmm_(x.reshape(_by_job(x, len(w))), w, alpha=alpha, beta=beta)
        return
    for its, own, weight in zip(out.split(counts), x.split(counts), w, strict=True):
        its.addmm_(own, weight, alpha=alpha, beta=beta)


def _products(x: Tensor, y: Tensor, counts: Sequence[int] | None, jobs: int) -> Tensor:
    """x^T y of each job (jobs, m, n), of (tokens, m) and (tokens, n)."""
    if counts is None:
        return torch.bmm(x.view(_by_job(x, jobs)).transpose(1, 2), y.reshape(_by_job(y, jobs)))
    out = x.new_empty(jobs, x.shape[1], y.shape[1])
    for its, one, other in zip(out, x.split(counts), y.split(counts), strict=True):
        torch.mm(one.T, other, out=its)
    return out


def _by_job(x: Tensor, jobs: int) -> tuple[int, int, int]:
    """(tokens, n) -> (jobs, tokens of each, n); said in full, since n is 0 where a layer has no pair left."""
    return jobs, len(x) // jobs, x.shape[1]
