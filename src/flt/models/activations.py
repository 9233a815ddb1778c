"""Activations of the frozen prefix: computed once per example, kept in the cache on disk, mapped into memory."""

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
"""Examples computed at once: another number would give other bits."""
VERSION = 1
"""Of the code below: another number for files of another form."""


@dataclass(frozen=True)
class PrefixedStore:
    """Inputs with the activations of the prefix beside them.

    Attributes:
        inputs: The rows' own inputs, which the embeddings and the attention mask still need.
        values: Activations of all rows one after the other (tokens of all rows, d), memory-mapped; bf16, which NumPy
            doesn't have, lies there as int16.
        dtype: Theirs.
        starts: First token of each row in values, (rows,); -1 where a row was left out.
        tokens: Tokens of each row, (rows,).
        path: The file of the values.
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
        """The file, read where and when a row is asked for: nothing is copied, and nobody can write."""
        return cls(inputs, np.memmap(path, _numpy(dtype), "r", shape=shape), dtype, starts, tokens, path)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process gets the name of the file, and not what is in it."""
        shape = (len(self.values), self.values.shape[1])
        return (PrefixedStore.mapped, (self.inputs, self.path, shape, self.dtype, self.starts, self.tokens))

    def row(self, i: int) -> dict[str, Tensor]:
        """The inputs of one row, and its activations (tokens, d)."""
        start = int(self.starts[i])
        assert start >= 0, f"row {i} has no activations"
        activations = np.array(self.values[start : start + int(self.tokens[i])])  # a copy: nobody can write the file
        return {**self.inputs.row(i), KEY: torch.from_numpy(activations).view(self.dtype)}

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Tokens of each row's text; None for images."""
        return self.inputs.lengths

    def arrays(self) -> list[NDArray]:
        """Those of the inputs."""
        return self.inputs.arrays()


@dataclass(frozen=True)
class Activations:
    """Puts activations beside inputs.

    Attributes:
        prefix: Whose.
        names: What to call the model and the data.
        collate: Makes batches.
        precision: Lightning's name of it; the activations are those of this precision.
        limit: Bytes that the cache may hold.
        device: Where the model is.
        watch: Told how many of how many examples are done; only while something is computed.
    """

    prefix: Prefix
    names: dict[str, str]
    collate: Callable[[list[Any]], dict[str, Tensor]]
    precision: str
    limit: int
    device: torch.device
    watch: Callable[[int, int], None] | None = None

    def beside(self, sets: Sequence[Examples]) -> list[Examples]:
        """The same examples, whose items have ``prefix`` too; sets that share a store share its activations."""
        stores: dict[int, PrefixedStore] = {}
        for examples in sets:
            if id(examples.store) not in stores:
                rows = np.unique(np.concatenate([other.rows for other in sets if other.store is examples.store]))
                stores[id(examples.store)] = self._store(examples.store, rows)
        return [Examples(stores[id(examples.store)], examples.labels, examples.rows) for examples in sets]

    def _store(self, store: Store, rows: NDArray[np.int64]) -> PrefixedStore:
        """Rows are computed in the order of their lengths, so that hardly anything is padding."""
        lengths = store.lengths
        ordered = rows if lengths is None else rows[np.argsort(lengths[rows], kind="stable")]
        probe = self._compute(store, ordered[-1:], check=True)
        tokens = np.full(len(rows), probe.shape[1]) if lengths is None else lengths[ordered]
        shape = (int(tokens.sum()), probe.shape[2])
        size = shape[0] * shape[1] * probe.element_size()

        def build(folder: Path) -> None:
            self._write(folder / FILE, store, ordered, tokens, shape, probe.dtype)

        folder = cache.entry("prefix", self._about(store, ordered, probe.dtype), build, size, self.limit)
        starts, counts = np.full(int(rows[-1]) + 1, -1), np.zeros(int(rows[-1]) + 1, dtype=np.int64)
        starts[ordered], counts[ordered] = np.cumsum(tokens) - tokens, tokens
        return PrefixedStore.mapped(store, folder / FILE, shape, probe.dtype, starts, counts)

    def _about(self, store: Store, rows: NDArray[np.int64], dtype: torch.dtype) -> dict[str, Any]:
        found = hashlib.sha256(rows.tobytes())
        for array in store.arrays():
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).data)
        return {
            **self.names, "prefix": self.prefix.digest(), "blocks": len(self.prefix.lower), "inputs": found.hexdigest(),
            "examples": len(rows), "precision": self.precision, "dtype": str(dtype).removeprefix("torch."),
            "base_version": 0, "collate": repr(self.collate), "device": self.device.type, "version": VERSION,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__, "transformers": transformers.__version__, "lightning": lightning.__version__,
        }  # fmt: skip

    def _write(
        self, path: Path, store: Store, rows: NDArray[np.int64], tokens: NDArray, shape: tuple[int, int], dtype: Any
    ) -> None:
        values, done = np.memmap(path, _numpy(dtype), "w+", shape=shape), 0
        for first in range(0, len(rows), BATCH):
            batch = slice(first, first + BATCH)
            for activations, count in zip(self._compute(store, rows[batch]), tokens[batch], strict=True):
                values[done : done + count] = _as_numpy(activations[:count])
                done += int(count)
            if self.watch is not None:
                self.watch(min(batch.stop, len(rows)), len(rows))
        values.flush()

    def _compute(self, store: Store, rows: NDArray[np.int64], check: bool = False) -> Tensor:
        """(batch, tokens, d), on the CPU."""
        inputs = self.collate([store.row(int(row)) for row in rows])
        batch = {name: value.to(self.device) for name, value in inputs.items()}
        with self._evaluating(), torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16-mixed"):
            if check:
                self.prefix.check(batch)
            return self.prefix.activations(batch).cpu()

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
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
