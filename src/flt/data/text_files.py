"""Reading of text files as UTF-8, whatever their encoding and compression. A doubtful encoding isn't guessed."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from flt.core.errors import InputError
from flt.core.typed import first_line
from flt.data.read_settings import check_size, room
from flt.data.suffixes import compression_of

PIECE = 1 << 22
"""Number of bytes that are decoded at once."""
BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Beginning of a file -> its encoding. The longer ones come first."""
PAGES = ("cp1252", "cp1250", "cp1254", "cp1257")
"""Encodings of the languages with Latin letters. Where all agree on a byte, it doesn't matter which it is."""
ALLOWED = "UTF-8, or the name of the file's encoding, such as cp1252, latin-1, cp1251, gb18030 or shift_jis"


def _agreed() -> dict[bytes, str]:
    found = {code: {bytes([code]).decode(page, "replace") for page in PAGES} for code in range(128, 256)}
    return {bytes([code]): min(letters) for code, letters in found.items() if len(letters) == 1}


LETTERS = b"".join(code for code, letter in _agreed().items() if letter.isalpha() and code > b"\xbf")
MARKS = b"\x80\x85\x91\x92\x93\x94\x95\x96\x97\x99\xa0\xa7\xa9\xab\xae\xb0\xb1\xb7\xbb"
"""Bytes that are the same letters, such as those for e with an acute accent, and the same marks, in all of PAGES."""
OTHER = bytes(set(range(128, 256)) - set(LETTERS + MARKS))
# Other alphabets use these bytes for letters of their own, which then stand side by side, or apart from Latin letters.
DOUBTFUL = re.compile(
    b"[%(other)s]|[\x80-\xff]{3}|[%(marks)s\x92][\x80-\xff]|[\x80-\xff][%(marks)s\x92]"
    b"|(?<![A-Za-z])[%(letters)s]{2}|[%(letters)s]{2}(?![A-Za-z])|(?<![A-Za-z])[%(letters)s](?![A-Za-z])"
    b"|(?<=[A-Za-z])[%(marks)s](?=[A-Za-z])|(?<=[A-Za-z])[\x91\x93]"
    % {b"other": re.escape(OTHER), b"letters": LETTERS, b"marks": re.escape(MARKS.replace(b"\x92", b""))}
)


@dataclass(frozen=True)
class Text:
    """Text of a file.

    Attributes:
        path: The file.
        data: The text in UTF-8, without a byte order mark.
        encoding: Encoding of the file. None: it isn't UTF-8, and it isn't certain what it is. ``data`` are then the
            bytes of the file.
    """

    path: Path
    data: pa.Buffer
    encoding: str | None

    def doubt(self) -> InputError:
        """Returns the error for a text whose encoding is in doubt."""
        return InputError.of("data.encoding", None, ALLOWED, f"{self.path.name} isn't UTF-8")


def read_text(path: Path, encoding: str | None = None) -> Text:
    """Reads a text file, which may be compressed, as UTF-8.

    A file that isn't UTF-8 is decoded if it begins with a byte order mark, if every second byte of its beginning is 0
    as in UTF-16, or if all encodings of ``PAGES`` give the same text.

    Args:
        path: The file.
        encoding: Encoding of the file. None: it is found.

    Raises:
        InputError: There is no such encoding, the file isn't in it, the text is larger than the memory, or compressed
            data are damaged or cut off.
    """
    raw = _bytes(path)
    found = _encoding(raw) if encoding is None else _known(encoding)
    if found in (None, "utf-8"):
        if found and encoding is not None and not _is_utf8(raw):
            raise InputError.of("data.encoding", encoding, "the encoding of the file", f"{path.name} isn't in it")
        return Text(path, raw.slice(3) if beginning(raw, 3) == codecs.BOM_UTF8 else raw, found)
    assert found is not None
    check_size(path, 3 * raw.size)
    try:
        decoder = codecs.getincrementaldecoder(found)()
        data = b"".join(
            [*(decoder.decode(piece).encode() for piece in _pieces(raw)), decoder.decode(b"", True).encode()]
        )
    except UnicodeError:  # "from None", because the error would show the text
        raise InputError.of("data.encoding", found, "the encoding of the file", f"{path.name} isn't in it") from None
    return Text(path, pa.py_buffer(data), found)


def beginning(data: pa.Buffer, size: int) -> bytes:
    """Returns at most so many bytes from the beginning of a text."""
    return data.slice(0, min(size, data.size)).to_pybytes()


def _bytes(path: Path) -> pa.Buffer:
    """Returns the bytes of a file. Those of a compressed file are read only as long as there is memory for them."""
    codec = compression_of(path.name)
    if codec is None:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    free, size, parts = room(), 0, list[bytes]()
    try:
        with pa.OSFile(str(path)) as compressed, pa.CompressedInputStream(compressed, codec) as stream:
            while piece := stream.read(PIECE):
                size += len(piece)
                check_size(path, 2 * size, free)  # twice, because the parts are joined
                parts.append(piece)
    except OSError as error:
        raise InputError.of("data.path", path, f"a whole {codec} file", first_line(error)) from None
    return pa.py_buffer(b"".join(parts))


def _pieces(raw: pa.Buffer) -> Iterator[bytes]:
    return (raw.slice(start, min(PIECE, raw.size - start)).to_pybytes() for start in range(0, raw.size, PIECE))


def _known(encoding: str) -> str:
    """Returns the standard name of an encoding of texts."""
    try:
        "a".encode(encoding)  # fails for codecs that aren't encodings of texts, such as hex
        return codecs.lookup(encoding).name.removesuffix("-sig")
    except (LookupError, UnicodeError, ValueError):
        raise InputError.of("data.encoding", encoding, ALLOWED, "there is no such encoding") from None


def _encoding(raw: pa.Buffer) -> str | None:
    """Returns the encoding of a text, or None if it is in doubt."""
    head = beginning(raw, 64)
    if mark := next((bom for bom in BOMS if head.startswith(bom)), None):
        return BOMS[mark]
    first, second = head[::2], head[1::2]
    if len(second) > 1 and any(head) and not (any(first) and any(second)):  # a text without zeros in between
        if all(first) and not any(second):
            return "utf-16-le"
        if all(second) and not any(first):
            return "utf-16-be"
    if _is_utf8(raw):
        return "utf-8"
    return None if DOUBTFUL.search(raw) else "cp1252"


def _is_utf8(raw: pa.Buffer) -> bool:
    """Returns whether a text is UTF-8, as pyarrow finds out without a copy of it."""
    if not raw.size:
        return True
    offsets = pa.array([0, raw.size], pa.int64()).buffers()[1]
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, raw]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
