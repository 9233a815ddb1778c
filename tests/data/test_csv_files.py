"""csv files: the same values as from the library csv, whatever texts hold, and every row counted."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from flt.core.errors import InputError
from flt.data import csv_quotes
from flt.data.csv_files import read_csv
from flt.data.read_settings import ReadSettings
from flt.data.text_files import read_text

CHARACTERS = "ab \",;\t|\n\r'é0"


def word(draw: random.Random) -> str:
    return "".join(draw.choices(CHARACTERS, k=draw.choice([0, 1, 2, 5, 12])))


def three(names: Sequence[str]) -> list[str]:
    if list(names) != ["text", "other", "label"]:
        raise InputError.of("data.text", None, names)
    return list(names)


@pytest.mark.parametrize(("piece", "bytes_per_quote"), [(1, 1), (7, 1), (1 << 24, 1), (7, 99)])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_random_tables_have_the_values_that_were_written(
    delimiter: str, ends: str, piece: int, bytes_per_quote: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_quotes, "PIECE", piece)
    monkeypatch.setattr(csv_quotes, "BYTES_PER_QUOTE", bytes_per_quote)
    for seed in range(8):
        draw = random.Random(seed)
        rows = [[word(draw), word(draw), draw.choice(["no", "yes"])] for _ in range(draw.randrange(1, 9))]
        with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
            # with other line ends, the library csv would leave half of the characters that end lines without quotes
            quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]) if ends == "\r\n" else csv.QUOTE_ALL
            writer = csv.writer(file, delimiter=delimiter, lineterminator=ends, quoting=quoting)
            writer.writerows([["text", "other", "label"], *rows])
        table = read_csv(tmp_path / "a.csv", ReadSettings(three))
        assert [["" if value is None else str(value) for value in row.values()] for row in table.to_pylist()] == rows


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (["1", "2"], "int64"), (["-1", "0"], "int64"), ([" 1", "2"], "int64"), (["1", ""], "int64"),
        (["01", "2"], "string"), (["-0", "1"], "string"), (["9" * 19, "1"], "string"), (["9" * 400, "1"], "string"),
        (["true", "False"], "bool"), (["true", "1"], "string"), (["0.5", "1"], "double"), (["1e3", "1"], "double"),
        (["2020-01-01", "2020-01-02"], "string"), (["12:30", "12:31"], "string"), (["NA", "NA"], "string"),
        (["", ""], "null"), (["1,5", "2"], "string"), (["x", "1"], "string"),
    ],
)  # fmt: skip
def test_a_column_has_another_type_than_text_if_its_values_are_written_as_usual(
    written: list[str], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f'x,"{value}"\n' for value in written))
    column = read_csv(tmp_path / "a.csv", ReadSettings())["b"]
    assert str(column.type) == kind
    assert kind != "string" or column.to_pylist() == written


def rows_of(text: str, tmp_path: Path) -> object:
    (tmp_path / "a.csv").write_bytes(text.encode())
    try:
        found = csv_quotes.check_quotes(read_text(tmp_path / "a.csv"), ",", '"', trusted=False)
    except InputError as error:
        return str(error)
    return found.count, found.spans


def test_a_quick_look_at_quotes_finds_the_same_as_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_quotes, "BYTES_PER_QUOTE", 1)
    cells = ["", "a", '"a"', '""', '"a""b\nc"', '"\r\n\n"', '""""""', '"a', 'a"', ' "a"', '"a"b']
    texts = [",".join(random.Random(i).choices(cells, k=3)) for i in range(60)]
    texts += [",".join(random.Random(i).choices(cells[:7], k=4)) + "\n" for i in range(60)]
    quick = [rows_of(text, tmp_path) for text in texts]
    monkeypatch.setattr(csv_quotes, "_regular", lambda *_: None)
    assert [rows_of(text, tmp_path) for text in texts] == quick
