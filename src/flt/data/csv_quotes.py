"""Quotes in csv files. A quote that isn't closed, or is closed too late, would merge rows without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flt.core.errors import InputError
from flt.data.columns import LABELS
from flt.data.read_settings import ReadSettings
from flt.data.text_files import Text

PLAIN = "data.quote=none if quotes are plain characters"
LINE = re.compile(rb"\r\n|\r|\n")
BYTES_PER_QUOTE = 16
"""Number of bytes for each quote, from which on the places of all quotes take no more memory than half of the text."""
PIECE = 1 << 24
"""Number of bytes of which the line ends are looked for at once."""


@dataclass(frozen=True)
class Rows:
    """Rows of a csv file, as its line ends and quotes say.

    Attributes:
        text: The file.
        delimiter: Character between the columns.
        count: Number of rows with the header. Empty lines aren't counted.
        spans: Begin and end of the quoted texts that have several lines.
        trusted: Whether the user has said what the quotes are.
    """

    text: Text
    delimiter: bytes
    count: int
    spans: list[tuple[int, int]] = field(default_factory=list)
    trusted: bool = False

    def check_lines(self, table: pa.Table, names: Sequence[str], how: ReadSettings) -> None:
        """Checks that quoted texts of several lines contain no rows, and notes how many there are.

        The lines look like rows if each has as many values as there are columns, and a label that other rows have.

        Raises:
            InputError: A quoted text of several lines looks like several rows.
        """
        if not self.spans:
            return
        how.note(f"line breaks in {len(self.spans)} text{'s' * (len(self.spans) > 1)}")
        label = how.label or next((name for name in LABELS if name in names), None)
        if self.trusted or label is None or label not in table.column_names:
            return
        known = {str(value).strip().lower().encode() for value in pc.unique(table[label]).to_pylist()}
        place = list(names).index(label)
        for begin, end in self.spans:
            cells = [line.split(self.delimiter) for line in self._lines(begin, end)]
            if all(len(row) == len(names) and row[place].strip(b"\"' ").lower() in known for row in cells):
                why = f"the quoted text in line {self.line(begin)} looks like {len(cells)} rows"
                raise InputError.of(
                    "data.path", self.text.path, f"{PLAIN}, or data.quote=double if they are right", why
                )

    def line(self, place: int) -> int:
        """Returns the number of a line, counted from 1."""
        return 1 + len(LINE.findall(self.text.data.slice(0, place).to_pybytes()))

    def _lines(self, begin: int, end: int) -> list[bytes]:
        """Returns the lines of the file to which a quoted text belongs."""
        near = max(0, begin - (1 << 16))
        before = LINE.split(self.text.data.slice(near, begin - near).to_pybytes())[-1]
        after = LINE.split(self.text.data.slice(end, min(1 << 16, self.text.data.size - end)).to_pybytes())[0]
        return LINE.split(before + self.text.data.slice(begin, end - begin).to_pybytes() + after)


def check_quotes(text: Text, delimiter: str, quote: str | None, trusted: bool) -> Rows:
    """Checks that each quoted text ends where a column ends, and counts the rows.

    Args:
        text: The file.
        delimiter: Character between the columns.
        quote: Character around quoted texts. None: there are no quoted texts.
        trusted: Whether the user has said what the quotes are.

    Raises:
        InputError: A quote isn't closed, or something follows a closing quote.
    """
    spans = _regular(text.data, delimiter, quote) if quote else []
    if quote and spans is None:
        spans = _searched(text, delimiter, quote, trusted)
    spans = spans or []
    return Rows(text, delimiter.encode(), _count(text.data, spans), spans, trusted)


def _searched(text: Text, delimiter: str, quote: str, trusted: bool) -> list[tuple[int, int]]:
    """Returns begin and end of the quoted texts of several lines, see :func:`check_quotes`."""
    spans: list[tuple[int, int]] = []
    d, q = re.escape(delimiter.encode()), re.escape(quote.encode())
    # The quote comes first in the pattern, and what has to be before it second: the search is faster this way.
    begins = rb"%b(?:(?<=[%b\r\n]%b)|(?<=\A%b))" % (q, d, q, q)
    more = rb"(?:%b%b[^%b]*+)*+" % (q, q, q)
    line = rb"[^%b\r\n]*+(?:%b%b[^%b\r\n]*+)*+" % (q, q, q, q)
    quoted = re.compile(begins + line + rb"([\r\n][^%b]*+%b)?(%b?)([^%b\r\n]?)" % (q, more, q, d))
    for found in quoted.finditer(text.data):
        several, closed, further = found.groups()
        if not closed or (further and not trusted):
            allowed = "doubled quotes in quoted texts" if closed else "a quote at both ends of a text"
            what = "text follows a closing quote" if closed else "a quote isn't closed"
            where = f"line {Rows(text, delimiter.encode(), 0).line(found.start())}: {what}"
            raise InputError.of("data.path", text.path, f"{allowed}, or {PLAIN}", where)
        if several:
            spans.append((found.start(), found.end(2)))
    return spans


def _regular(data: pa.Buffer, delimiter: str, quote: str) -> list[tuple[int, int]] | None:
    """Returns begin and end of the quoted texts of several lines, or None if the quotes need a closer look.

    They don't if each second quote, from the first on, begins a text and each other one ends a text: beside it is the
    end of the column, or the quote with which it makes a doubled quote.
    """
    most = data.size // BYTES_PER_QUOTE
    if not (quotes := _places(data, quote, most)).size:
        return []
    if len(quotes) % 2 or len(quotes) > most:
        return None
    chars, begins, ends = np.frombuffer(data, np.uint8), quotes[::2], quotes[1::2]
    doubled = ends[:-1] + 1 == begins[1:]
    ending = np.isin(np.arange(256), [ord("\r"), ord("\n"), ord(delimiter)])
    before, after = ending[chars[begins - 1]], ending[chars[np.minimum(ends + 1, data.size - 1)]]
    before[0] |= begins[0] == 0
    after[-1] |= ends[-1] == data.size - 1
    before[1:] |= doubled
    after[:-1] |= doubled
    if not (before.all() and after.all()):
        return None
    whole = np.stack([begins[np.append(True, ~doubled)], ends[np.append(~doubled, True)] + 1], axis=1)
    several = np.zeros(len(whole), bool)
    for lines in _line_ends(data, whole[:0]):
        last = np.searchsorted(whole[:, 0], lines) - 1  # the last text that begins before the line ends
        several[last[(last >= 0) & (lines < whole[last, 1])]] = True
    return [(begin, end) for begin, end in whole[several].tolist()]


def _places(data: pa.Buffer, char: str, most: int) -> np.ndarray:
    """Returns the places of a character, or of a few more than ``most`` if there are so many."""
    found, count = [np.zeros(0, np.int64)], 0
    for start in range(0, data.size, PIECE):
        piece = np.frombuffer(data.slice(start, min(PIECE, data.size - start)), np.uint8)
        found.append(np.flatnonzero(piece == ord(char)) + start)
        if (count := count + len(found[-1])) > most:
            break
    return np.concatenate(found)


def _count(data: pa.Buffer, spans: Sequence[tuple[int, int]]) -> int:
    """Returns the number of lines that aren't empty. Line ends in quoted texts end no line."""
    last, count = -1, 0
    for ends in _line_ends(data, np.array(spans, np.int64).reshape(-1, 2)):
        count += int((np.diff(ends, prepend=last) > 1).sum())
        last = int(ends[-1])
    return count + (data.size - 1 > last)


def _line_ends(data: pa.Buffer, spans: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the places of the characters that end lines, those of a piece at once."""
    for start in range(0, data.size, PIECE):
        piece = np.frombuffer(data.slice(start, min(PIECE, data.size - start)), np.uint8)
        ends = np.flatnonzero((piece == ord("\n")) | (piece == ord("\r"))) + start
        before = np.searchsorted(spans[:, 0], ends) - 1  # the last quoted text that begins before the character
        if len(spans):
            ends = ends[(before < 0) | (ends >= spans[before, 1])]
        if len(ends):
            yield ends
