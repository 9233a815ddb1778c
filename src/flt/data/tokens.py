"""Tokenised once: the token ids of texts, kept in the cache by what they were made of."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray

from flt.core import cache
from flt.data import stores
from flt.data.stores import TextStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = Callable[[], Iterator[list[list[str | None]]]]
"""Reads all rows, some at a time: a list for each column."""
Tokenize = Callable[[Sequence[Sequence[str]], "PreTrainedTokenizerBase", int], dict[str, list]]
"""Turns some rows, by column, into tokens of at most a length: input_ids and what else a store holds."""
VERSION = 1
"""Of the code that tokenises: count it up whenever other tokens come out."""
SPECIAL = 4
"""Most special tokens around a text or a pair; the size of an entry is estimated with it."""
_log = logging.getLogger(__name__)


def stored(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str,
    limit: int,
    tokenize: Tokenize = stores.tokenize,
) -> TextStore:
    """The tokens of texts, which the first call writes into the cache and the next ones find there.

    Args:
        texts: Reads the rows; a missing text counts as an empty one.
        tokenizer: A tokenizer of transformers.
        max_length: Most tokens per row.
        name: What to call the texts.
        limit: Bytes that the cache may hold.
        tokenize: What makes tokens of the columns.
    """
    content, lengths = _digest(texts)
    about = {
        "data": name,
        "texts": content,
        "examples": len(lengths),
        "model": _name(tokenizer),
        "tokenizer": tokenizer_digest(tokenizer),
        "max_length": max_length,
        "made_by": f"{tokenize.__module__}.{tokenize.__name__}",
        "version": f"{VERSION} transformers {transformers.__version__} tokenizers {tokenizers.__version__}",
    }

    def build(folder: Path) -> None:
        _log.info("tokenising %s texts", f"{len(lengths):,}")
        _write(folder, texts, lambda columns: tokenize(columns, tokenizer, max_length))

    return TextStore.mapped(cache.entry("tokens", about, build, _size(lengths, tokenizer, max_length), limit))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides which tokens a text becomes; calls of the tokenizer in between don't change it."""
    sides = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.model_input_names]
    sides += [tokenizer.truncation_side, tokenizer.split_special_tokens]
    found = hashlib.sha256(json.dumps(sides, sort_keys=True, default=str).encode())
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # Every call sets these two anew.
        found.update(json.dumps({**backend, "truncation": None, "padding": None}, sort_keys=True).encode())
    else:
        settings = [sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs, tokenizer.added_tokens_decoder]
        found.update(json.dumps(settings, sort_keys=True, default=str).encode())
        found.update(_vocabulary(tokenizer))
    return found.hexdigest()


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """The files of a tokenizer written in Python, which hold more than its words: merges, scores."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        return b"".join(path.read_bytes() for path in sorted(Path(folder).iterdir()))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hub id, or the last part of a folder."""
    name = str(tokenizer.name_or_path)
    return Path(name).name if Path(name).is_absolute() else name


def _digest(texts: Texts) -> tuple[str, NDArray[np.int64]]:
    """Digest of all columns, and the bytes of each row."""
    found, lengths = hashlib.sha256(), [np.zeros(0, dtype=np.int64)]
    for columns in texts():
        encoded = [[None if text is None else text.encode() for text in column] for column in columns]
        # The lengths tell one text from the next, and -1 a missing one from an empty one.
        sizes = np.array([[-1 if text is None else len(text) for text in column] for column in encoded])
        found.update(f"{sizes.shape}".encode() + sizes.tobytes())
        for column in encoded:
            found.update(b"".join(text or b"" for text in column))
        lengths.append(sizes.clip(0).sum(axis=0))
    return found.hexdigest(), np.concatenate(lengths)


def _size(lengths: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Bytes that the tokens take, at most: hardly any tokenizer makes more than one token of a byte."""
    columns = sum(name in tokenizer.model_input_names for name in stores.COLUMNS)
    return int((lengths + SPECIAL).clip(max=max_length).sum()) * columns * 4 + (len(lengths) + 1) * 12


def _write(folder: Path, texts: Texts, tokenize: Callable[[list[list[str]]], dict[str, Any]]) -> None:
    lengths = [0]
    for columns in texts():
        encoded = tokenize([[text or "" for text in column] for column in columns])
        lengths += map(len, encoded["input_ids"])
        for name, rows in encoded.items():
            with (folder / name).open("ab") as file:
                file.write(stores.flatten(rows).tobytes())
    np.cumsum(lengths, dtype=np.int64).tofile(folder / stores.OFFSETS)
