"""Formulas that server and clients share."""

from __future__ import annotations

import torch
from torch import Tensor


def product_norm(b: Tensor, a: Tensor) -> float:
    """|B A| in Frobenius norm, by the r x r Gram matrices.

    Args:
        b: (out, r), float64.
        a: (r, in), float64.
    """
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())


def factors(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of B A in the order of its singular values.

    The rows of the right one have the mean norm of A's (our choice): both factors train on at the pace that they had,
    and a product of zero, as before the first step, leaves an A that can learn.

    Args:
        b: (out, n), float64.
        a: (n, in), float64.

    Returns:
        Left factor (out, n), singular values (n,), right factor (n, in).
    """
    outer, upper = torch.linalg.qr(b)  # (out, m), (m, n), m = min(out, n)
    inner, lower = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    norm = float(a.norm(dim=1).mean()) or 1.0
    return outer @ u * (values / norm), values, norm * v @ inner.T
