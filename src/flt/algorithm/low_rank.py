"""Formulas for a product of two low-rank factors, B A."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_product_norm(b: Tensor, a: Tensor) -> Tensor:
    """Returns |B A|^2 in Frobenius norm, from the small Gram matrices: tr((B^T B) (A A^T)).

    Args:
        b: (out, r), float64.
        a: (r, in), float64.

    Returns:
        A scalar tensor, at least 0: rounding can make the trace of a tiny product negative.
    """
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0)


def product_norm(b: Tensor, a: Tensor) -> float:
    """Returns |B A| in Frobenius norm.

    Args:
        b: (out, r), float64.
        a: (r, in), float64.
    """
    return float(squared_product_norm(b, a).sqrt())


def factors(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factorises B A by its singular value decomposition, largest singular values first.

    The rows of the right factor have the mean norm of A's rows (our choice). Both factors then continue to train at
    their previous pace, and a product of zero, as before the first step, still gives an A that can learn.

    Args:
        b: (out, n), float64.
        a: (n, in), float64.

    Returns:
        Left factor (out, m), singular values (m,), right factor (m, in), with m = min(out, n, in).
    """
    outer, upper = torch.linalg.qr(b)  # (out, m), (m, n), m = min(out, n)
    inner, lower = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    norm = float(a.norm(dim=1).mean()) or 1.0
    return outer @ u * (values / norm), values, norm * v @ inner.T
