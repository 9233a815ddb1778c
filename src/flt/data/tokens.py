"""Cached token ids of texts. A digest of the texts and the tokenizer identifies an entry of the cache on disk."""

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
"""Function that yields all rows in batches. A batch has one list of texts for each column."""
Tokenize = Callable[[Sequence[Sequence[str]], "PreTrainedTokenizerBase", int], dict[str, list]]
"""Function that tokenises some rows. Its arguments are the texts of each column, the tokenizer and the maximum length.

The function returns input_ids, token_type_ids if the tokenizer makes them, and targets if rows have responses.
"""
VERSION = 1
"""Version of the code that tokenises. It must be increased whenever a change of this code changes the tokens."""
SPECIAL = 4
"""Assumed largest number of special tokens in a row, used to estimate the size of a cache entry."""
_log = logging.getLogger(__name__)


def stored(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str,
    limit: int,
    tokenize: Tokenize = stores.tokenize,
) -> TextStore:
    """Returns the tokens of texts. The first call writes them to the cache; later calls read them from there.

    Args:
        texts: Function that yields the rows. A missing text counts as empty.
        tokenizer: A tokenizer of transformers.
        max_length: Largest number of tokens per row.
        name: Name of the texts in the cache.
        limit: Largest size of the cache in bytes.
        tokenize: Function that tokenises a batch of rows.
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

    return TextStore.mapped(cache.get_or_build("tokens", about, build, _size(lengths, tokenizer, max_length), limit))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a digest of all properties of a tokenizer that affect tokens.

    Calls of the tokenizer don't change the digest.
    """
    sides = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.model_input_names]
    sides += [tokenizer.truncation_side, tokenizer.split_special_tokens]
    found = hashlib.sha256(json.dumps(sides, sort_keys=True, default=str).encode())
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # Truncation and padding are left out, because every call of the tokenizer overwrites them.
        found.update(json.dumps({**backend, "truncation": None, "padding": None}, sort_keys=True).encode())
    else:
        settings = [sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs, tokenizer.added_tokens_decoder]
        found.update(json.dumps(settings, sort_keys=True, default=str).encode())
        found.update(_vocabulary(tokenizer))
    return found.hexdigest()


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Returns the vocabulary files of a tokenizer that isn't fast. These files also contain merges and scores."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        return b"".join(path.read_bytes() for path in sorted(Path(folder).iterdir()))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the hub id of a tokenizer, or the name of the folder that it was loaded from."""
    name = str(tokenizer.name_or_path)
    return Path(name).name if Path(name).is_absolute() else name


def _digest(texts: Texts) -> tuple[str, NDArray[np.int64]]:
    """Returns a digest of all texts, and the number of bytes of each row."""
    found, lengths = hashlib.sha256(), [np.zeros(0, dtype=np.int64)]
    for columns in texts():
        encoded = [[None if text is None else text.encode() for text in column] for column in columns]
        # The digest includes the lengths, which mark the end of each text. A missing text has the length -1.
        sizes = np.array([[-1 if text is None else len(text) for text in column] for column in encoded])
        found.update(f"{sizes.shape}".encode() + sizes.tobytes())
        for column in encoded:
            found.update(b"".join(text or b"" for text in column))
        lengths.append(sizes.clip(0).sum(axis=0))
    return found.hexdigest(), np.concatenate(lengths)


def _size(lengths: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Returns an upper bound of an entry's size in bytes.

    The bound assumes that a tokenizer makes at most one token from a byte, as nearly all tokenizers do.
    """
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
