"""Cache of the frozen prefix's activations, which are computed once per example and kept in a memory-mapped file.

The frozen prefix consists of the blocks below the lowest adapted block; see frozen_prefix.py.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from flt.core import cache
from flt.data.examples import Examples
from flt.data.stores import Store
from flt.models.frozen_prefix import KEY, Prefix

FILE = "activations.bin"
BATCH = 64
"""Number of examples in a forward pass. Another number would change the last bits of the activations."""
VERSION = 1
"""Version of the code in this file, used in the cache key. Increase it when the format of the cached files changes."""


@dataclass(frozen=True)
class PrefixedStore:
    """Store with one row for each example. A row contains the encoded inputs and the activations of the frozen prefix.

    Attributes:
        inputs: Encoded inputs of the rows. The model still computes embeddings and attention mask from these inputs.
        values: Activations of all rows, one row after another. Shape: (tokens of all rows, d). The array is
            memory-mapped. bf16 values are stored as int16 with the same bits, because NumPy has no bf16.
        dtype: Data type of the activations in torch.
        starts: For each row, the index of its first token in ``values``, or -1 if the row has no activations. Shape:
            (rows,).
        tokens: Number of tokens of each row. Shape: (rows,).
        path: File from which ``values`` is mapped.
    """

    inputs: Store
    values: NDArray
    dtype: torch.dtype
    starts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    path: Path

    @classmethod
    def mapped(
        cls, inputs: Store, path: Path, shape: tuple[int, int], dtype: torch.dtype, starts: NDArray, tokens: NDArray
    ) -> PrefixedStore:
        """Returns a store that maps the file into memory, read-only. A row is read from disk when it is accessed."""
        return cls(inputs, np.memmap(path, _numpy(dtype), "r", shape=shape), dtype, starts, tokens, path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path of the file instead of its content. A worker process then maps the file itself."""
        shape = (len(self.values), self.values.shape[1])
        return (PrefixedStore.mapped, (self.inputs, self.path, shape, self.dtype, self.starts, self.tokens))

    def row(self, i: int) -> dict[str, Tensor]:
        """Returns the inputs of one row and its activations (tokens, d)."""
        start = int(self.starts[i])
        assert start >= 0, f"row {i} has no activations"
        activations = np.array(self.values[start : start + int(self.tokens[i])])  # copied: torch needs a writable array
        return {**self.inputs.row(i), KEY: torch.from_numpy(activations).view(self.dtype)}

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Number of tokens of each row's text; None for images."""
        return self.inputs.lengths

    def arrays(self) -> list[NDArray]:
        """Returns all arrays that the encoded inputs depend on, so that a digest of the inputs can be computed."""
        return self.inputs.arrays()


@dataclass(frozen=True)
class Activations:
    """Computes the activations of a frozen prefix, or reads them from the cache, and adds them to data sets.

    Attributes:
        prefix: The frozen prefix of the model.
        names: Names of the model and of the data set. They are part of the cache key.
        collate: Builds a batch from a list of examples.
        precision: Lightning's name of the precision in which the activations are computed.
        limit: Largest size of the cache, in bytes.
        device: Device of the model.
        watch: Function that shows the progress. It is called after each computed batch, with the number of finished
            examples and the number of all examples. It isn't called if the cache already has the activations. If None,
            no progress is shown.
    """

    prefix: Prefix
    names: dict[str, str]
    collate: Callable[[list[Any]], dict[str, Tensor]]
    precision: str
    limit: int
    device: torch.device
    watch: Callable[[int, int], None] | None = None

    def beside(self, sets: Sequence[Examples]) -> list[Examples]:
        """Returns the same data sets, with the activations of each example under the key ``prefix``.

        The activations of a store are computed once, even if several data sets use this store.
        """
        stores: dict[int, PrefixedStore] = {}
        for examples in sets:
            if id(examples.store) not in stores:
                rows = np.unique(np.concatenate([other.rows for other in sets if other.store is examples.store]))
                stores[id(examples.store)] = self._store(examples.store, rows)
        return [Examples(stores[id(examples.store)], examples.labels, examples.rows) for examples in sets]

    def _store(self, store: Store, rows: NDArray[np.int64]) -> PrefixedStore:
        """Returns a store with the activations of the given rows. Rows are sorted by length, to reduce padding."""
        lengths = store.lengths
        ordered = rows if lengths is None else rows[np.argsort(lengths[rows], kind="stable")]
        probe = self._compute(store, ordered[-1:], check=True)
        tokens = np.full(len(rows), probe.shape[1]) if lengths is None else lengths[ordered]
        shape = (int(tokens.sum()), probe.shape[2])
        size = shape[0] * shape[1] * probe.element_size()

        def build(folder: Path) -> None:
            self._write(folder / FILE, store, ordered, tokens, shape, probe.dtype)

        folder = cache.get_or_build(
            "prefix", self._cache_description(store, ordered, probe.dtype), build, size, self.limit
        )
        starts, counts = np.full(int(rows[-1]) + 1, -1), np.zeros(int(rows[-1]) + 1, dtype=np.int64)
        starts[ordered], counts[ordered] = np.cumsum(tokens) - tokens, tokens
        return PrefixedStore.mapped(store, folder / FILE, shape, probe.dtype, starts, counts)

    def _cache_description(self, store: Store, rows: NDArray[np.int64], dtype: torch.dtype) -> dict[str, Any]:
        digest = hashlib.sha256(rows.tobytes())
        for array in store.arrays():
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return {
            **self.names, "prefix": self.prefix.digest(), "blocks": len(self.prefix.lower),
            "inputs": digest.hexdigest(), "examples": len(rows), "precision": self.precision,
            "dtype": str(dtype).removeprefix("torch."),
            "base_version": 0, "collate": repr(self.collate), "device": self.device.type, "version": VERSION,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__, "transformers": transformers.__version__, "lightning": lightning.__version__,
        }  # fmt: skip

    def _write(
        self, path: Path, store: Store, rows: NDArray[np.int64], tokens: NDArray, shape: tuple[int, int], dtype: Any
    ) -> None:
        values, written = np.memmap(path, _numpy(dtype), "w+", shape=shape), 0
        for first in range(0, len(rows), BATCH):
            batch = slice(first, first + BATCH)
            for activations, count in zip(self._compute(store, rows[batch]), tokens[batch], strict=True):
                values[written : written + count] = _as_numpy(activations[:count])
                written += int(count)
            if self.watch is not None:
                self.watch(min(batch.stop, len(rows)), len(rows))
        values.flush()

    def _compute(self, store: Store, rows: NDArray[np.int64], check: bool = False) -> Tensor:
        """Returns the activations of the given rows (batch, tokens, d), on the CPU.

        With ``check``, the function raises an InputError if the upper blocks need more from the lower blocks than these
        activations.
        """
        inputs = self.collate([store.row(int(row)) for row in rows])
        batch = {name: value.to(self.device) for name, value in inputs.items()}
        with self._eval_mode(), torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16-mixed"):
            if check:
                self.prefix.check(batch)
            return self.prefix.activations(batch).cpu()

    @contextlib.contextmanager
    def _eval_mode(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.prefix.model.modules()]
        self.prefix.model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _numpy(dtype: torch.dtype) -> type:
    return np.int16 if dtype == torch.bfloat16 else np.float32


def _as_numpy(activations: Tensor) -> NDArray:
    return (activations.view(torch.int16) if activations.dtype == torch.bfloat16 else activations).numpy()
