"""Norm and SVD of a product B A, computed from its two low-rank factors. The product itself is never formed."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_product_norm(b: Tensor, a: Tensor) -> Tensor:
    """Returns the squared Frobenius norm |B A|^2, computed from (r, r) matrices: tr((B^T B) (A A^T)).

    Args:
        b: (out, r), float64.
        a: (r, in), float64.

    Returns:
        A scalar tensor. A negative trace, which rounding can cause for a tiny product, is replaced by 0.
    """
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0)


def product_norm(b: Tensor, a: Tensor) -> float:
    """Returns the Frobenius norm |B A|.

    Args:
        b: (out, r), float64.
        a: (r, in), float64.
    """
    return float(squared_product_norm(b, a).sqrt())


def factors(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factorises B A by its singular value decomposition, with the largest singular values first.

    The rows of the right factor are scaled to the mean norm of A's rows (our choice). Later optimiser steps then
    change both factors at about the same speed as before. Even before the first step, when B = 0, the new A isn't 0.

    Args:
        b: (out, n), float64.
        a: (n, in), float64.

    Returns:
        A left factor (out, m), the singular values (m,), and a right factor (m, in), with m = min(out, n, in). The
        product of the left and the right factor is B A.
    """
    outer, upper = torch.linalg.qr(b)  # (out, m), (m, n), m = min(out, n)
    inner, lower = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    norm = float(a.norm(dim=1).mean()) or 1.0
    return outer @ u * (values / norm), values, norm * v @ inner.T
