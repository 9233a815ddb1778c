"""Names and types of the columns of JSON lines, found in bounded memory. Objects inside of a column stay empty."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.data.text_files import Text, beginning

Bytes = NDArray[np.uint8]
Tokens = NDArray[np.int64]
"""Characters that structure a JSON text, shape (3, n): the position, the character, and the levels open after it."""
DEEPEST, MOST_COLUMNS = 64, 5000
"""Largest number of nested levels, and of different keys of the rows."""
PIECE = 1 << 20
"""Number of bytes that are searched at once."""
HEAD = 1 << 20
"""Number of bytes at the beginning of a long text that say what its rows are like."""
QUOTE, COLON, COMMA, OPEN, CLOSE, SPACE = b'":,{} '
SPACES = b" \t\r\n"
NULL = re.compile(rb"\s*+null")
OBJECT = re.compile(rb"[\s\[]*+\{")
"""Beginning of an object, or of a list that begins with objects."""


def _table(values: dict[int, int]) -> NDArray[np.int8]:
    table = np.zeros(256, np.int8)
    table[list(values)] = list(values.values())
    return table


LEVELS = _table({OPEN: 1, CLOSE: -1, ord("["): 1, ord("]"): -1})
BRACES = _table({OPEN: 1, CLOSE: -1})
SPECIAL = _table(dict.fromkeys(b'":,{}[]', 1)).astype(bool)
ROW_GOES_ON, NEXT_ROW, NOTHING = (pa.scalar(text, pa.large_binary()) for text in (b",", b"}{", b""))
PLAIN = ~_table(dict.fromkeys(b"[{ \t\r\n", 1)).astype(bool)
"""Beginnings of values that contain no objects."""


def as_lines(text: Text) -> Text:
    """Returns a JSON text as objects one after another. A list of objects becomes the objects without the list.

    Raises:
        InputError: The list contains something else than objects with one comma between them.
    """
    if beginning(text.data, PIECE).lstrip(SPACES)[:1] != b"[":
        return text
    data, parts = bytearray(text.data), list[NDArray[np.int64]]()
    view = np.frombuffer(data, np.uint8)  # each row gets a line of its own
    for place, char, level in _tokens(_bytes(text)):
        comma = (char == COMMA) & (level == 1)
        parts.append(char[comma | ((char == OPEN) & (level == 2))])
        outer = comma | ((char == ord("[")) & (level == 1)) | ((char == ord("]")) & (level == 0))
        view[place[outer]] = ord("\n")
    kinds = np.concatenate(parts)
    if level[-1] or len(kinds) and not (len(kinds) % 2 and (kinds[::2] == OPEN).all() and (kinds[1::2] == COMMA).all()):
        raise InputError.of("data.path", text.path, "a list of objects with one comma between them")
    return Text(text.path, pa.py_buffer(data), text.encoding)


def read_alike(text: Text, choose: Callable[[Sequence[str]], list[str]]) -> pa.Table | None:
    """Reads columns of a long JSON text whose rows are all like the first ones, several times as fast as else.

    Args:
        text: The text.
        choose: Function that returns the columns to read, out of the names of all columns.

    Returns:
        The table. None if the text is short, has an empty row, or has a row with another key, or with a value of
        another type, than the rows before the first ``HEAD`` bytes; if values are lists or objects; and if the text or
        the choice of columns fails, so that the reason is found when the text is read row by row.
    """
    head = beginning(text.data, HEAD)
    first = Text(text.path, pa.py_buffer(head[: head.rfind(b"\n") + 1]), text.encoding)
    if len(head) < HEAD or not first.data.size:
        return None
    try:
        written, _ = column_names(first)
        columns = choose(list(dict.fromkeys(written.values())))
        schema = read_json(first, set(written.values()), written).schema
        if any(map(pa.types.is_nested, schema.types)):
            return None
        table = _parsed(text.data, schema, "error").select(columns)
    except (InputError, pa.ArrowInvalid, KeyError):
        return None
    filled = functools.reduce(pc.or_, (column.is_valid() for column in table.columns), pa.scalar(False))
    return table if columns and pc.all(filled).as_py() else None


def read_json(text: Text, columns: Collection[str], names: dict[bytes, str]) -> pa.Table:
    """Reads columns of a JSON text. All others are skipped without being stored, whatever they hold.

    Args:
        text: The text.
        columns: Names of the columns.
        names: Name of each column as it is written in the file -> the name, see :func:`column_names`.
    """
    used = {raw for raw, name in names.items() if name in columns}
    schema = _parsed(pa.py_buffer(_only(text, used))).schema if used else pa.schema([])
    # pyarrow takes texts that look like dates for dates, even if they are the names of classes
    texts = [field.with_type(pa.string()) if pa.types.is_timestamp(field.type) else field for field in schema]
    return _parsed(text.data, pa.schema(texts))


def column_names(text: Text) -> tuple[dict[bytes, str], int]:
    """Returns the names of the columns of a JSON text, and its number of rows.

    The names are a dict: each as it is written in the file -> the name.

    Raises:
        InputError: The text begins with null, is nested too deeply, or has too many columns.
        pyarrow.ArrowInvalid: The text isn't JSON.
    """
    if NULL.match(text.data):  # pyarrow ends the process
        raise InputError.of("data.path", text.path, "an object for each row", "it begins with null")
    _parsed(text.data, pa.schema([]))  # what follows relies on well-formed JSON
    names, count = dict[bytes, str](), 0
    for _, keys, _, count in _members(text):  # noqa: B007  # the last count is returned
        for raw in keys.unique().to_pylist():
            names.setdefault(raw, json.loads(f'"{raw.decode(errors="replace")}"', strict=False))
        if len(names) > MOST_COLUMNS:
            raise InputError.of("data.path", text.path, f"at most {MOST_COLUMNS} different keys")
    return names, count


def _parsed(data: pa.Buffer, schema: pa.Schema | None = None, others: str = "ignore") -> pa.Table:
    """Parses a JSON text. With a schema, reads only its columns. Without one, infers the types of all columns.

    Columns that aren't in the schema are ignored, or are an error if ``others`` is so.
    """
    # The block covers the whole text, because types are inferred only from the first block, and a row may have lines.
    read = pyarrow.json.ReadOptions(block_size=min(data.size + 3, 2**31 - 1))
    options = None
    if schema is not None:  # pyarrow skips what isn't in the schema without recursion, so no depth is too much for it
        options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=others)
    return pyarrow.json.read_json(pa.BufferReader(data), read_options=read, parse_options=options)


def _bytes(text: Text) -> Bytes:
    return np.frombuffer(text.data, np.uint8)


def _only(text: Text, used: Collection[bytes]) -> bytes:
    """Returns the rows of a JSON text with only the columns that are used, and with empty objects inside of them.

    Args:
        text: The text.
        used: Names of the columns, as they are written in the file.
    """
    data, wanted, parts, last = _bytes(text), pa.array(used, pa.large_binary()), list[pa.Buffer](), -1
    for rows, keys, spans, _ in _members(text):
        kept = np.flatnonzero(pc.is_in(keys, wanted))
        if not len(kept):
            continue
        rows, (starts, colons, stops) = rows[kept], spans[kept].T
        members = _slices(data, starts, stops)
        begin = np.where(data[colons + 1] == SPACE, data[colons + 2], data[colons + 1])
        if (nested := ~PLAIN[begin]).any():
            emptied = map(_emptied, members.filter(pa.array(nested)).to_pylist(), (colons - starts)[nested].tolist())
            members = pc.replace_with_mask(members, nested, pa.array(emptied, members.type))
        further = pa.array(np.diff(rows, prepend=last))
        between = pc.if_else(pc.equal(further, 0), ROW_GOES_ON, pc.binary_repeat(NEXT_ROW, further))
        parts.append(pc.binary_join_element_wise(between, members, NOTHING).buffers()[2])
        last = int(rows[-1])
    return b"".join(parts)[1:] + b"}"


def _emptied(text: bytes, colon: int) -> bytes:
    """Returns ``"key": value`` without what is inside of the value's objects, whose keys could be millions."""
    if found := OBJECT.match(text, colon + 1):  # what comes after the first object has to be of the same type
        return text[: colon + 1] + b"[" * found[0].count(b"[") + b"{}" + b"]" * found[0].count(b"[")
    if b"{" not in text or text[colon + 1 :].lstrip()[:1] != b"[":
        return text
    change, level = np.zeros(len(text) + 1, np.int8), 0
    for place, char, _ in _tokens(member := np.frombuffer(text, np.uint8)):
        levels = level + np.cumsum(BRACES[char], dtype=np.int64)
        change[place[(char == OPEN) & (levels == 1)] + 1] += 1
        change[place[(char == CLOSE) & (levels == 0)]] -= 1
        level = int(levels[-1]) if len(levels) else level
    return member[np.cumsum(change[:-1], dtype=np.int8) == 0].tobytes()


def _members(text: Text) -> Iterator[tuple[NDArray[np.int64], pa.Array, NDArray[np.int64], int]]:
    """Yields the members ``"key": value`` of the rows of a well-formed JSON text, those of a piece at once.

    Yields:
        The row of each member, its key as it is written, and where it starts, has its colon, and ends, shape (n, 3);
        and the number of rows so far.

    Raises:
        InputError: The text is nested too deeply.
    """
    data, rest, begun = _bytes(text), np.zeros((3, 0), np.int64), 0
    for tokens in _tokens(data):
        if tokens[2].max(initial=0) > DEEPEST:
            raise InputError.of("data.path", text.path, f"at most {DEEPEST} nested levels")
        # Only the tokens of the rows themselves: the last of a member is followed by a comma, or by the row's brace.
        place, char, levels = rest = np.hstack([rest, tokens[:, tokens[2] <= 1]])
        last = (char == COMMA) | (levels == 0)
        stops = np.flatnonzero(last & (np.roll(char, 1) != OPEN))  # an empty row has no member
        colons = np.flatnonzero(char == COLON)[: len(stops)]
        rows = begun - 1 + np.cumsum(char == OPEN)[colons]
        spans = np.stack([place[colons - 2], place[colons], place[stops]], axis=1)
        known = begun + int((char == OPEN).sum())
        yield rows, _slices(data, place[colons - 2] + 1, place[colons - 1]), spans, known
        done = int(np.flatnonzero(last)[-1]) + 1 if last.any() else 0
        begun, rest = begun + int((char[:done] == OPEN).sum()), rest[:, done:]


def _slices(data: Bytes, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> pa.Array:
    """Returns ``data[start:stop]`` for each start and stop."""
    if not len(starts):
        return pa.array([], pa.large_binary())
    # pyarrow's texts follow one another, so that each second one is what lies between two slices.
    offsets = np.stack([starts, stops], axis=1).ravel()
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    both = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    return both.take(pa.array(np.arange(0, len(offsets), 2)))


def _tokens(data: Bytes) -> Iterator[Tokens]:
    """Yields the quotes of strings and what is outside of strings: brackets, braces, colons and commas."""
    start = quoted = level = 0
    while start < len(data):
        piece = data[start : start + PIECE].tobytes()
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2 and len(piece) > 1:
            piece = piece[:-1]  # a backslash stays beside what it escapes
        chars = np.frombuffer(piece.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), np.uint8)
        place = np.flatnonzero(SPECIAL[chars])
        quotes = chars[place] == QUOTE
        inside = (quoted + np.cumsum(quotes)) % 2
        place = place[quotes | (inside == 0)]
        char = chars[place].astype(np.int64)
        levels = level + np.cumsum(LEVELS[char], dtype=np.int64)
        yield np.stack([place + start, char, levels])
        quoted, level = (quoted + int(quotes.sum())) % 2, int(levels[-1]) if len(levels) else level
        start += len(piece)
