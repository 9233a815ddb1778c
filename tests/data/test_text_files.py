"""Text files in any encoding: found where it is certain, and never guessed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from flt.core.errors import InputError
from flt.data import read_settings, text_files
from flt.data.text_files import read_text

FOUND = [
    ("plain text", "utf-8", "utf-8"),
    ("à la carte", "utf-8", "utf-8"),
    ("à la carte", "utf-8-sig", "utf-8"),
    ("à la carte", "utf-16", "utf-16"),
    ("plain text", "utf-16-le", "utf-16-le"),
    ("plain text à la", "utf-16-be", "utf-16-be"),
    ("à la carte", "utf-32", "utf-32"),
    ("un café", "latin-1", "cp1252"),
    ("schöne Grüße, Äpfel", "cp1252", "cp1252"),
    ("don’t “say” – it… 5€", "cp1252", "cp1252"),
    ("à la carte", "cp1252", None),
    ("mañana", "latin-1", None),
    ("příliš žluťoučký", "cp1250", None),
    ("Łódź", "iso8859-2", None),
    ("ışık", "cp1254", None),
    ("Привет", "cp1251", None),
    ("Привет", "koi8-r", None),
    ("καλημέρα", "cp1253", None),
    ("こんにちは", "shift_jis", None),
    ("你好世界", "gb18030", None),
    ("가나다", "euc-kr", None),
    ("schön", "cp850", None),
    ("café", "mac-roman", None),
]


@pytest.mark.parametrize(("text", "encoding", "found"), FOUND)
def test_an_encoding_is_found_or_in_doubt_and_the_text_is_right(
    text: str, encoding: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "PIECE", 3)  # characters lie on both sides of a border
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(encoding))
    read = read_text(path)
    assert read.encoding == found
    assert found is None or read.data.to_pybytes() == text.encode()
    assert read_text(path, encoding).data.to_pybytes() == text.encode()


@pytest.mark.parametrize("data", [b"", b"a", b"\xef\xbb\xbf", b"\0", b"\0\0\0\0", b"a\0"])
def test_texts_of_a_few_bytes_are_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    assert read_text(tmp_path / "a.csv").encoding == "utf-8"


def test_a_compressed_file_is_read_no_further_than_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_settings, "available_memory", lambda device: 10_000_000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0" * 100_000_000))
    with pytest.raises(InputError, match=r"^data\.path=.*: it needs 0\.0 GB of memory; allowed is data that fit"):
        read_text(tmp_path / "a.csv.gz")


@pytest.mark.parametrize("ending", ["gz", "bz2", "zst"])
def test_what_is_not_compressed_or_cut_off_is_refused_without_its_text(ending: str, tmp_path: Path) -> None:
    path, codec = tmp_path / f"a.csv.{ending}", {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}[ending]
    with pa.CompressedOutputStream(str(path), codec) as file:
        file.write(bytes(range(97, 123)) * 10_000)
    for data in (path.read_bytes()[:-7], b"unmistakable" * 9):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"allowed is a whole {codec} file$") as raised:
            read_text(path)
        assert "unmistakable" not in str(raised.value)
