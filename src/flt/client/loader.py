"""Data loaders for fits and for evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.data.samplers import Shuffled, SimilarLengths, WithoutSmall, lengths_of


def loader(
    dataset: Dataset,
    settings: LocalSettings,
    collate: Callable[[list[Any]], Any] | None,
    seed: int | None,
    batch_norm: str = "",
    least: int = 2,
) -> DataLoader:
    """Returns a data loader for a fit or an evaluation.

    Args:
        dataset: The examples.
        settings: Sizes of the batches, and the window in which texts are sorted by length.
        collate: Function that builds a batch from a list of examples. If None, torch's default is used.
        seed: Seed of the shuffling. If None, the loader is for an evaluation: examples aren't shuffled, and texts are
            sorted from short to long.
        batch_norm: Name of a layer that can't learn from a batch of fewer than ``least`` examples. Such a batch is
            joined to the one before it. Empty if there is no such layer.
        least: Smallest number of examples in a training batch, if there is such a layer.

    Raises:
        InputError: There is such a layer, and every batch would have fewer examples.
    """
    lengths = lengths_of(dataset)
    if seed is None:
        order = None if lengths is None else np.argsort(lengths, kind="stable").tolist()
        return DataLoader(dataset, settings.eval_batch_size, sampler=order, collate_fn=collate)
    size, batch_size = len(dataset), settings.batch_size  # type: ignore[arg-type]  # torch's base class has no length
    for what, number in (("batch_size", batch_size), ("training examples of a client", size)) if batch_norm else ():
        if number < least:
            raise InputError.of(what, number, f"at least {least} for {batch_norm}, a batch norm in training")
    by_length = lengths is not None and settings.length_window > 1
    if lengths is not None and by_length:
        batches: Sampler[list[int]] = SimilarLengths(lengths, batch_size, settings.length_window, seed)
    else:
        batches = BatchSampler(Shuffled(size, seed), batch_size, drop_last=False)
    if batch_norm and 0 < size % batch_size < least:
        batches = WithoutSmall(batches, least)
    elif not by_length:  # so that the loader's attribute batch_size is set
        return DataLoader(dataset, batch_size, sampler=Shuffled(size, seed), collate_fn=collate)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
