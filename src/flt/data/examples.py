"""Encoded examples, views that select some of the examples, and collation of examples into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flt.core.errors import InputError
from flt.data import stores
from flt.data.random_splits import Positions, Seed, stratified_order
from flt.data.stores import Store

PADDED = {"attention_mask": 0, "token_type_ids": 0, "prefix": 0, "labels": stores.IGNORED}
"""Name of a tensor that has one value per token -> value with which the tensor is padded."""
OUTPUTS = "outputs"
"""Name of the tensor of a batch (batch, 2) that says which outputs belong to the task of each example.

The numbers are the first of these outputs, and the one after the last. Batches of jobs with several tasks have this
tensor, see :mod:`flt.data.joint`.
"""


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Data set of encoded examples. An item contains the unpadded inputs of one example, and ``labels``.

    The method ``view`` selects some of the examples. All views share one store of the inputs. A view therefore needs
    memory only for its row numbers and labels.

    Args:
        store: Encoded inputs.
        labels: Class of each example, shape (n,).
        rows: Row of each example in the store, shape (n,). If None, example i has row i.

    Example:
        >>> examples = Examples(stores.ImageStore(torch.zeros(3, 1, 2, 2), size=None, channels=None), [0, 1, 0])
        >>> {name: tuple(value.shape) for name, value in examples[1].items()}
        {'pixel_values': (1, 2, 2), 'labels': ()}
    """

    def __init__(self, store: Store, labels: ArrayLike, rows: ArrayLike | None = None) -> None:
        self.store = store
        self.labels: NDArray[np.int64] = np.asarray(labels, dtype=np.int64)
        self.rows: Positions = np.arange(len(self.labels)) if rows is None else np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Returns the tensors of one example.

        A text has input_ids, attention_mask and, with some tokenizers, token_type_ids, each of shape (length,). An
        image has pixel_values of shape (C, H, W). ``labels`` is the class, a scalar. If the data have responses,
        ``labels`` contains the label of each token instead, shape (length,).
        """
        row = self.store.row(int(self.rows[i]))
        return row if "labels" in row else {**row, "labels": torch.tensor(int(self.labels[i]))}

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Number of tokens of each example, shape (n,). None for images."""
        lengths = self.store.lengths
        return None if lengths is None else lengths[self.rows]

    def view(self, positions: ArrayLike, labels: ArrayLike | None = None) -> Examples:
        """Selects examples without copying their inputs.

        Args:
            positions: Positions of the examples, shape (m,).
            labels: New labels of these examples, such as labels within a task. Shape (m,). If None, the labels stay the
                same.
        """
        positions = np.asarray(positions, dtype=np.int64)
        return Examples(self.store, self.labels[positions] if labels is None else labels, self.rows[positions])


@dataclass(frozen=True)
class Collate:
    """Function that collates items into a batch.

    Texts are padded on the right to the length of the longest text in the batch. Images and classes are stacked.

    Attributes:
        pad_token_id: Value with which input_ids are padded. Attention masks and token types are padded with 0, and
            labels of tokens with -100.
        mean: Mean of each channel over the images on which the backbone was trained.
        std: Standard deviation of each channel over these images. If mean or std is None, pixels stay in [0, 1].

    Example:
        >>> items = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(1)} for ids in ([5, 6], [7])]
        >>> Collate(pad_token_id=9)(items)["input_ids"].tolist()
        [[5, 6], [7, 9]]
    """

    pad_token_id: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Collates items into a batch. All items must have the same keys."""
        return {name: self._join(name, [item[name] for item in items]) for name in items[0]}

    def _join(self, name: str, values: list[Tensor]) -> Tensor:
        if name == "pixel_values" and self.mean is not None and self.std is not None:
            mean, std = (torch.tensor(figures).view(1, -1, 1, 1) for figures in (self.mean, self.std))
            return (torch.stack(values) - mean) / std
        filling = {"input_ids": self.pad_token_id, **PADDED}
        if name not in filling or not values[0].dim():
            return torch.stack(values)
        return pad_sequence(values, batch_first=True, padding_value=filling[name])


def stratified_sample(examples: Examples, n: int, seed: Seed) -> Positions:
    """Returns the sorted positions of a stratified sample of at most n examples. The same seed gives the same sample.

    Raises:
        InputError: n is below 1.

    Example:
        >>> examples = Examples(stores.ImageStore(torch.zeros(4, 1, 1, 1), None, None), [0, 0, 1, 1])
        >>> sorted(examples.labels[stratified_sample(examples, 2, seed=0)].tolist())
        [0, 1]
    """
    if n < 1:
        raise InputError.of("eval.examples", n, "an integer >= 1")
    return np.sort(stratified_order(examples.labels, seed)[:n])
