"""Views and updates for the tests of aggregation rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from made import update_of, view_of

from flt.algorithm.view import View
from flt.protocol.messages import Update

KEPT = [
    {"x": (0, 1, 2), "y": (1,)},
    {"x": (1,), "y": (0, 1)},
    {"x": (0, 2), "y": ()},
]
"""Pair 3 of x, and pairs 2 and 3 of y, are sent by nobody."""


def view_and_updates(kept: Sequence[dict[str, tuple[int, ...]]] = KEPT) -> tuple[View, list[Update]]:
    """Three members of group 1; the last was in group 2 so far, so another model was sent to it."""
    view = view_of(groups=(0, 1, 2), assignment={(0, 0): 1, (1, 0): 1, (2, 0): 2})
    sizes = zip(kept, (10, 30, 7), strict=True)
    return view, [update_of(view, (i, 0), pairs, examples) for i, (pairs, examples) in enumerate(sizes)]


def full_of(update: Update, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An update's tensor at the initial rank, nan where nothing was sent."""
    full, part, ids = np.full(shape, np.nan), update.tensors[name].numpy(), list(update.kept.get(name[0], ()))
    if name == "head":
        return part.astype(np.float64)
    full[(ids, slice(None)) if name.endswith("A") else (slice(None), ids)] = part
    return full
