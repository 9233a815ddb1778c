"""Reading of csv files. Rows are counted, and a file whose delimiter or quotes are in doubt is refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from flt.core.errors import InputError
from flt.data.csv_quotes import check_quotes
from flt.data.read_settings import ReadSettings, check_rows, check_size
from flt.data.text_files import Text, read_text

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
"""Values of ``data.delimiter`` that stand for a character, and the characters that are tried."""
LONGEST_ROW = 1 << 23
"""Number of bytes of a file that are parsed at once if rows are read one batch after another."""
LONGEST_HEADER = 1 << 26
"""Largest number of characters of a file's line of names."""
QUOTES = {"double": '"', "single": "'", "none": None}
"""Value of ``data.quote`` -> the character around quoted texts."""


def read_csv(path: Path, how: ReadSettings, usual: str = ",") -> pa.Table:
    """Reads the columns of a csv file that are used.

    Integers are a column's type only if each is written as integers are: the label 00123 stays a text.

    Args:
        path: The file.
        how: Settings of the file. If the delimiter is None, it is the usual one or, if the columns that are needed
            have only other delimiters between them, the one with which they are found.
        usual: Usual delimiter of such a file.

    Raises:
        InputError: The encoding, the delimiter or the quotes are in doubt, the header is repeated, or a column lacks.
        pyarrow.ArrowInvalid: A row has too many or too few values.
    """
    text, quote = read_text(path, how.encoding), _quote(how.quote)
    check_size(path, text.data.size)
    delimiter, names, lacking = _delimiter(text, how, usual, quote)
    columns = names[:1] if lacking else how.chosen(names) if names else []
    if text.encoding is None and any("\udc80" <= char <= "\udcff" for name in columns for char in name):
        raise text.doubt()
    rows = check_quotes(text, delimiter, quote, how.quote is not None)
    table = _parsed(text, delimiter, quote, columns)
    if lacking is not None:  # raised only now that the whole file is known to be well-formed
        raise lacking
    if text.encoding is None and any(pa.types.is_binary(column.type) for column in table.columns):
        raise text.doubt()
    check_rows(path, rows.count - 1, table.num_rows)
    table = _as_written(table, text, delimiter, quote)
    _check_header(path, table)
    rows.check_lines(table, names, how)
    if text.encoding not in ("utf-8", None):
        how.note(f"encoding {text.encoding}")
    if delimiter != usual:
        how.note(f"delimiter {next((name for name, one in DELIMITERS.items() if one == delimiter), delimiter)}")
    return table


def stream_csv(path: Path, how: ReadSettings, usual: str = ",") -> tuple[list[str], int, Iterator[pa.RecordBatch]]:
    """Reads all columns of a csv file as texts, with a bounded part of the rows in memory.

    The file is checked like in :func:`read_csv`. Columns without a name are left out.

    Args:
        path: The file.
        how: Settings of the file.
        usual: Usual delimiter of such a file.

    Returns:
        The names of the columns, the number of rows, and the rows in batches.

    Raises:
        InputError: The encoding, the delimiter or the quotes are in doubt, or a column lacks.
    """
    text, quote = read_text(path, how.encoding), _quote(how.quote)
    if text.encoding is None:
        raise text.doubt()
    delimiter, names, lacking = _delimiter(text, how, usual, quote)
    rows = check_quotes(text, delimiter, quote, how.quote is not None).count - 1
    if lacking is not None:
        raise lacking
    columns = [name for name in names if name]
    reader = pyarrow.csv.open_csv(
        pa.BufferReader(text.data),
        read_options=pyarrow.csv.ReadOptions(block_size=min(text.data.size + 1, LONGEST_ROW), use_threads=False),
        parse_options=_parse_options(delimiter, quote),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )
    return columns, rows, iter(reader)


def _quote(given: str | None) -> str | None:
    """Returns the character around quoted texts, or None if there are no quoted texts."""
    if given in ('"', "'"):
        return given
    if given is not None and given not in QUOTES:
        raise InputError.of("data.quote", given, QUOTES)
    return QUOTES[given or "double"]


def _delimiter(
    text: Text, how: ReadSettings, usual: str, quote: str | None
) -> tuple[str, list[str], InputError | None]:
    """Returns the delimiter, the names of the columns, and an error if a column lacks with every delimiter."""
    given = DELIMITERS.get(how.delimiter or "", how.delimiter)
    if given is not None and (len(given) != 1 or not given.isascii() or given in "\r\n\"'"):
        raise InputError.of("data.delimiter", how.delimiter, f"one character, or {', '.join(DELIMITERS)}")
    names, lacking = dict[str, list[str]](), dict[str, InputError]()
    for one in dict.fromkeys([usual, *DELIMITERS.values()] if given is None else [given]):
        try:
            names[one] = _header(text, one, quote)
            how.choose(names[one])
        except InputError as error:
            lacking[one] = error
        except csv.Error:  # a name that is too long, because the delimiter is another
            if one in (usual, given):
                raise
        if one == usual and one not in lacking:
            return one, names[one], None
    fitting = [one for one in names if one not in lacking]
    if len(fitting) > 1:
        allowed = [name for name, one in DELIMITERS.items() if one in fitting]
        raise InputError.of("data.delimiter", how.delimiter, allowed, "each of them fits")
    if fitting:
        return fitting[0], names[fitting[0]], None
    most = max(names, key=lambda one: len(names[one]))  # its error lists the columns one by one
    return most, names[most], lacking[most]


def _header(text: Text, delimiter: str, quote: str | None) -> list[str]:
    """Returns the names of the columns. Like pyarrow, skips empty lines before them."""
    # surrogateescape: only the columns that are used have to be UTF-8
    with io.TextIOWrapper(pa.BufferReader(text.data), "utf-8", "surrogateescape", newline="") as file:
        lines = iter(lambda: file.readline(LONGEST_HEADER), "")
        style = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
        return next((row for row in csv.reader(lines, delimiter=delimiter, **style) if row), [])


def _parsed(text: Text, delimiter: str, quote: str | None, columns: Sequence[str], as_texts: bool = False) -> pa.Table:
    types = dict.fromkeys(columns, pa.string()) if as_texts else None
    # The block covers the whole file, because types are inferred only from the first one. If pyarrow used threads, its
    # errors would contain no row number.
    return pyarrow.csv.read_csv(
        pa.BufferReader(text.data),
        read_options=pyarrow.csv.ReadOptions(block_size=min(text.data.size + 1, 2**31 - 1), use_threads=False),
        parse_options=_parse_options(delimiter, quote),
        convert_options=pyarrow.csv.ConvertOptions(include_columns=columns, column_types=types),
    )


def _parse_options(delimiter: str, quote: str | None) -> pyarrow.csv.ParseOptions:
    return pyarrow.csv.ParseOptions(
        delimiter=delimiter, quote_char=quote or False, newlines_in_values=quote is not None
    )


def _as_written(table: pa.Table, text: Text, delimiter: str, quote: str | None) -> pa.Table:
    """Returns a table in which values of other types than text have become texts, if they aren't written as usual.

    pyarrow takes 00123 for 123, a number of 20 digits for a rounded one, 1 in a column of booleans for true, and NA in
    an otherwise empty column for nothing.
    """
    changed = [name for name, column in zip(table.column_names, table.columns, strict=True) if not _is_text(column)]
    if not changed:
        return table
    written = _parsed(text, delimiter, quote, changed, as_texts=True)
    for name in changed:
        column = written[name]
        if not _is_plain(table[name], pc.utf8_trim_whitespace(column)):
            table = table.set_column(table.column_names.index(name), name, column)
    return table


def _is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_binary(column.type)


def _is_plain(column: pa.ChunkedArray, written: pa.ChunkedArray) -> bool:
    """Returns whether values are written as values of their type are."""
    kind, filled = column.type, column.is_valid()
    if pa.types.is_null(kind):
        return pc.all(pc.equal(written, "")).as_py() is not False
    if pa.types.is_floating(kind):
        return pc.any(pc.invert(pc.match_substring_regex(written.filter(filled), r"^[+-]?\d+$"))).as_py() is not False
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        same = pc.equal(pc.utf8_lower(written), column.cast(pa.string()))
        return pc.all(same.filter(filled)).as_py() is not False
    return False


def _check_header(path: Path, table: pa.Table) -> None:
    """Checks that no row repeats the names of the columns, as when files have been joined."""
    if not table.num_columns or not all(map(_is_text, table.columns)):
        return
    repeated = pa.chunked_array([pa.repeat(True, table.num_rows)])
    for name, column in zip(table.column_names, table.columns, strict=True):
        repeated = pc.and_(repeated, pc.equal(column.cast(pa.binary()), name.encode(errors="surrogateescape")))
    if pc.any(repeated).as_py():
        why = f"row {pc.index(repeated, True).as_py() + 1} after the header repeats it"
        raise InputError.of("data.path", path, "a file with one header", why)
