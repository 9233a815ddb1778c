"""One line about what has been read from a file: rows, columns, classes, and how many are empty or doubled."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from flt.core.formatting import printable
from flt.data.read_settings import ReadSettings

MOST_NAMES, LONGEST_NAME = 8, 30
"""Largest number of classes whose names are said, and of characters of such a name."""
MISSING = ("na", "n/a", "nan", "<na>", "none", "null", "nil", "-", "?")
"""Names of classes that may stand for missing labels."""
LARGEST = 1 << 30
"""Number of bytes of texts from which on doubled rows aren't counted, because that takes several times as many."""


def contents(
    name: str,
    splits: dict[str, datasets.Dataset],
    how: ReadSettings,
    texts: Sequence[str],
    label: str,
    classes: Sequence[str],
) -> str:
    """Returns one line about a file or folder.

    Args:
        name: Name of the file or folder.
        splits: Its splits, before any row is left out.
        how: Settings with which it was read, and notes.
        texts: Columns of texts. Empty for images.
        label: Column of the labels. Empty if there are none.
        classes: Names of the classes. Empty if there are no labels.
    """
    rows = " + ".join(f"{len(split):,} {split_name}" for split_name, split in splits.items())
    total = sum(map(len, splits.values()))
    parts = [f"{total:,} rows{f' ({rows})' if len(splits) > 1 else ''}", f"{how.columns} columns"]
    if label:
        parts.append(named(classes))
    parts += [f"{count:,} {what}" for what, count in _counts(splits, texts, label).items() if count]
    return f"{name}: {', '.join(parts + _alike(classes) + how.notes)}"


def named(classes: Sequence[str]) -> str:
    """Returns the number of some classes and, unless there are many, their names in brackets."""
    shown = [one if len(one) <= LONGEST_NAME else f"{one[:LONGEST_NAME]}..." for one in classes]
    names = f" ({', '.join(shown)})" if len(classes) <= MOST_NAMES else ""
    return f"{len(classes)} class{'es' * (len(classes) != 1)}{printable(names)}"


def _alike(classes: Sequence[str]) -> list[str]:
    """Returns notes about names that may stand for no class, or two for the same one."""
    plain: dict[str, str] = {}
    notes = [f"{ascii(name)} is a class" for name in classes if name.strip().lower() in MISSING][:2]
    for name in classes:
        other = plain.setdefault(" ".join(name.split()).lower(), name)
        if other != name:
            return [*notes, f"classes {ascii(other)} and {ascii(name)} differ only in upper case or blanks"]
    return notes


def _counts(splits: dict[str, datasets.Dataset], texts: Sequence[str], label: str) -> dict[str, int]:
    """Returns how many texts are empty, and how many rows have the same texts and label as an earlier row."""
    if not texts:
        return {}
    used = list(dict.fromkeys([*texts, *([label] if label else [])]))
    tables = [_plain(split.data.table.select(used)) for split in splits.values()]
    empty = sum(_empty(table[name]) for table in tables for name in texts)
    doubled = 0
    with contextlib.suppress(pa.ArrowException):  # labels of splits may be of types that nothing can be compared with
        if sum(table.nbytes for table in tables) < LARGEST:
            whole = pa.concat_tables(tables, promote_options="permissive")
            doubled = len(whole) - len(whole.group_by(used, use_threads=False).aggregate([]))
    return {"empty texts": empty, "repeated rows": doubled}


def _plain(table: pa.Table) -> pa.Table:
    """Returns a table with texts in place of categories, of which pyarrow counts only those of one dictionary."""
    plain = [field.with_type(_value_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(plain))


def _value_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _empty(column: pa.ChunkedArray) -> int:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
    return column.null_count + (pc.sum(blank).as_py() or 0)
