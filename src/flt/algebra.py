"""Formulas that server and clients share."""

from __future__ import annotations

from torch import Tensor


def drift(c: Tensor, moved: Tensor, steps: int, lr: float) -> Tensor:
    """SCAFFOLD's c_i+ - c_i = (w_t - w_i) / (K lr) - c (arXiv 1910.06378, algorithm 1, option II).

    Args:
        c: The federation's control variate.
        moved: w_t - w_i.
        steps: K, the client's optimiser steps.
        lr: Its learning rate.
    """
    return moved / (steps * lr) - c
