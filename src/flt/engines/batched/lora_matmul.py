"""LoRA products of several jobs, added in place to the output of a frozen layer, with a fast backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LowRank(torch.autograd.Function):
    """Adds scale · (x A^T B^T) to ``out`` in place, where x is the layer's input and ``out`` is its output.

    The tokens of each job are multiplied by the job's own A and B.

    The backward pass that autograd derives for these products is slower. It splits the output by jobs and joins the
    gradients again, which reads and writes all activations two more times. It also computes the gradient of B as
    gradient^T (x A^T), which takes about three times as long as the transposed product (x A^T)^T gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, counts: Sequence[int] | None
    ) -> Tensor:
        """Adds the scaled product to ``out`` in place, and returns ``out``.

        Args:
            ctx: Context of autograd.
            out: Output of the frozen layer for x, shape (tokens, out). ``out`` must not be a view, because autograd
                copies the gradient of a view.
            x: Input (tokens, in). The tokens of the first job come first, then those of the second.
            a: A of each job, (jobs, r, in).
            b: B of each job, (jobs, out, r).
            scale: Scale of the product, the same for all jobs.
            counts: Number of tokens of each job; None if all jobs have the same number.
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
        """Returns the gradients of the arguments of ``forward``."""
        x, inner, a, b = ctx.saved_tensors
        needs_out, needs_x, needs_a, needs_b = ctx.needs_input_grad[:4]
        grad_x = grad_a = grad_b = None
        if needs_b:
            grad_b = _products(inner, gradient, ctx.counts, len(b)).mul_(ctx.scale).transpose(1, 2)
        if needs_a or needs_x:
            outer = torch.empty_like(inner)  # (tokens, r)
            _add(outer, gradient, b, ctx.counts, alpha=ctx.scale, beta=0)
            if needs_a:
                grad_a = _products(outer, x, ctx.counts, len(a))
            if needs_x:
                grad_x = torch.empty_like(x)
                _add(grad_x, outer, a, ctx.counts, beta=0)
        return gradient if needs_out else None, grad_x, grad_a, grad_b, None, None


def _add(
    out: Tensor, x: Tensor, w: Tensor, counts: Sequence[int] | None, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """Sets ``out`` to beta · out + alpha · (x @ w) for the tokens of each job, in place.

    Args:
        out: Tensor (tokens, n).
        x: Tensor (tokens, m).
        w: Matrix of each job, (jobs, m, n).
        counts: Number of tokens of each job; None if all jobs have the same number.
        alpha: Factor of the product.
        beta: Factor of the old value of ``out``.
    """
    if counts is None:
        by_job = out.view(_by_job(out, len(w)))
        by_job.baddbmm_(x.reshape(_by_job(x, len(w))), w, alpha=alpha, beta=beta)
        return
    for out_job, x_job, weight in zip(out.split(counts), x.split(counts), w, strict=True):
        out_job.addmm_(x_job, weight, alpha=alpha, beta=beta)


def _products(x: Tensor, y: Tensor, counts: Sequence[int] | None, jobs: int) -> Tensor:
    """Returns x^T y for the tokens of each job, shape (jobs, m, n). x is (tokens, m), and y is (tokens, n)."""
    if counts is None:
        return torch.bmm(x.view(_by_job(x, jobs)).transpose(1, 2), y.reshape(_by_job(y, jobs)))
    out = x.new_empty(jobs, x.shape[1], y.shape[1])
    for out_job, x_job, y_job in zip(out, x.split(counts), y.split(counts), strict=True):
        torch.mm(x_job.T, y_job, out=out_job)
    return out


def _by_job(x: Tensor, jobs: int) -> tuple[int, int, int]:
    """Returns the shape (jobs, tokens / jobs, n) into which x (tokens, n) can be viewed.

    The shape contains no -1, because ``view`` can't resolve a -1 if n is 0. n is 0 in a layer without components.
    """
    return jobs, len(x) // jobs, x.shape[1]
