"""Data loaders for fits and for evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from flt.client.settings import LocalSettings
from flt.data.samplers import Shuffled, SimilarLengths, lengths_of


def loader(
    dataset: Dataset, settings: LocalSettings, collate: Callable[[list[Any]], Any] | None, seed: int | None
) -> DataLoader:
    """Returns a data loader for a fit or an evaluation.

    Args:
        dataset: The examples.
        settings: Sizes of the batches, and the window in which texts are sorted by length.
        collate: Function that builds a batch from a list of examples. If None, torch's default is used.
        seed: Seed of the shuffling. If None, the loader is for an evaluation: examples aren't shuffled, and texts are
            sorted from short to long.
    """
    lengths = lengths_of(dataset)
    if seed is None:
        order = None if lengths is None else np.argsort(lengths, kind="stable").tolist()
        return DataLoader(dataset, settings.eval_batch_size, sampler=order, collate_fn=collate)
    if lengths is None or settings.length_window == 1:
        sampler = Shuffled(len(dataset), seed)  # type: ignore[arg-type]  # torch's base class has no length
        return DataLoader(dataset, settings.batch_size, sampler=sampler, collate_fn=collate)
    batches = SimilarLengths(lengths, settings.batch_size, settings.length_window, seed)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
