"""Endings of the names of data files. Nothing heavy is imported, because command lines are checked with this module."""

from __future__ import annotations

TEXTS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
"""Endings of text files. An error from reading such a file may quote its rows."""
SUFFIXES = (".parquet", *TEXTS, ".arrow", ".feather", ".npz")
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Ending that a text file may have in addition -> compression, as pyarrow calls it."""


def suffix_of(name: str) -> str:
    """Returns the ending of a data file's name in lower case, without that of a compression. Empty if it is no such.

    Example:
        >>> suffix_of("reviews.CSV"), suffix_of("a.jsonl.gz"), suffix_of("a.gz"), suffix_of("org/name")
        ('.csv', '.jsonl', '', '')
    """
    lower = name.lower()
    plain = next((lower.removesuffix(ending) for ending in COMPRESSED if lower.endswith(ending)), lower)
    return next((ending for ending in (SUFFIXES if plain == lower else TEXTS) if plain.endswith(ending)), "")


def compression_of(name: str) -> str | None:
    """Returns the compression that the ending of a file's name stands for, or None."""
    return next((codec for ending, codec in COMPRESSED.items() if name.lower().endswith(ending)), None)
