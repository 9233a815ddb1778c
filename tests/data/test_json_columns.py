"""JSON of which only the used columns are read: the same values as from the library json, in bounded memory."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from forked import cost

from flt.core.errors import InputError
from flt.data import file_formats, json_columns
from flt.data.config import DataConfig
from flt.data.dataset_sources import load
from flt.data.read_settings import ReadSettings
from flt.data.text_files import read_text

CHARACTERS = 'a"\\{}[],: \né😀'


def written(path: Path, rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def train_rows(path: Path, **fields: Any) -> int:
    return len(load(DataConfig("file", str(path), validation=0.0, **fields)).splits["train"])


def sizes(path: Path) -> dict[str, int]:
    found = file_formats.READERS[".jsonl"](
        path, ReadSettings(lambda names: [name for name in names if name in ("text", "label")])
    )
    return {split: len(rows) for split, rows in found.items()}


# ------------------------------------------------------------------------------------------------- values


def word(draw: random.Random) -> str:
    return "".join(draw.choices(CHARACTERS, k=draw.choice([0, 1, 2, 5, 12])))


def anything(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if kind < 0.4 or depth == 4:
        return word(draw)
    if kind < 0.6:
        return draw.choice([1, -2, 1.5, True, None, 10**20])
    if kind < 0.8:
        return [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {word(draw): anything(draw, depth + 1) for _ in range(draw.randrange(4))}


COLUMNS = {
    "text": word,
    "label": lambda draw: draw.randrange(3),
    "texts": lambda draw: [word(draw) for _ in range(draw.randrange(4))],
    "objects": lambda draw: [{word(draw): anything(draw)} for _ in range(draw.randrange(3))],
    '"\\{': lambda draw: {word(draw): anything(draw)},
    "unused": anything,
}


def emptied(value: Any) -> Any:
    """The value without what is inside of its objects."""
    if isinstance(value, list):
        return [emptied(item) for item in value]
    return {} if isinstance(value, dict) else value


@pytest.mark.parametrize("piece", [2, 3, 7, 50, 1 << 20])
def test_random_rows_have_the_values_that_the_library_json_reads(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_columns, "PIECE", piece)
    path = tmp_path / "a.jsonl"
    for seed in range(15):
        draw = random.Random(seed)
        rows = []
        for _ in range(draw.randint(1, 6)):
            present = draw.sample(list(COLUMNS), draw.randint(0, len(COLUMNS)))
            rows.append({name: draw.choice([COLUMNS[name](draw), None]) for name in present})
        form = {"indent": draw.choice([None, 2]), "separators": draw.choice([None, (",", ":"), (" , ", " : ")])}
        path.write_text(draw.choice(["\n", "\n\n", " ", ""]).join(json.dumps(row, **form) for row in rows))
        names, _ = json_columns.column_names(read_text(path))
        assert list(names.values()) == list(dict.fromkeys(name for row in rows for name in row))
        used = [name for name in COLUMNS if name in names.values() and name != "unused"]
        found = json_columns.read_json(read_text(path), used, names)
        expected = [{name: emptied(row.get(name)) for name in used} for row in rows]
        assert found.num_rows == len(rows)
        assert not used or [{name: row[name] for name in used} for row in found.to_pylist()] == expected


ALIKE = [{"text": f"a{i}", "day": "2020-01-01", "label": i, "x": i / 2, "no": None} for i in range(9)]
OTHERWISE: dict[str, Any] = {
    "another key": {**ALIKE[0], "more": 1},
    "another type": {**ALIKE[0], "label": "a"},
    "a fraction among integers": {**ALIKE[0], "label": 1.5},
    "a number of 20 digits": {**ALIKE[0], "label": 12345678901234567890},
    "a value where all were null": {**ALIKE[0], "no": 1},
    "a list": {**ALIKE[0], "x": [1]},
    "an empty row": {},
    "null": None,
    "a number": 5,
}


def lines(rows: list[Any]) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize("text", [lines(ALIKE), json.dumps(ALIKE), lines(ALIKE) + "\n\n"])
def test_a_long_text_of_rows_that_are_alike_is_read_at_once_with_the_same_values(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(text)
    read = json_columns.as_lines(read_text(tmp_path / "a.json"))
    wanted = ["text", "day", "label"]
    assert json_columns.read_alike(read, lambda names: wanted) is None  # it is short
    monkeypatch.setattr(json_columns, "HEAD", 200)
    found = json_columns.read_alike(read, lambda names: [name for name in names if name in wanted])
    assert found == json_columns.read_json(read, wanted, json_columns.column_names(read)[0]).select(wanted)
    assert found is not None
    assert found.to_pylist() == [{name: row[name] for name in wanted} for row in ALIKE]


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_long_text_with_another_row_is_read_row_by_row(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_columns, "HEAD", 200)
    (tmp_path / "a.jsonl").write_text(lines([*ALIKE, OTHERWISE[what]]))
    assert json_columns.read_alike(read_text(tmp_path / "a.jsonl"), list) is None


def test_random_damage_ends_in_an_error_of_pyarrow_or_of_flt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for seed in range(300):
        draw = random.Random(seed)
        rows = [{"text": word(draw), "label": 1, "unused": anything(draw)} for _ in range(3)]
        data = bytearray("\n".join(map(json.dumps, rows)).encode())
        data[draw.randrange(len(data))] = draw.choice(b'"{}[]:,\\ \n1a\xff\0')
        path.write_bytes(data)
        try:
            names, _ = json_columns.column_names(read_text(path))
            json_columns.read_json(read_text(path), {"text", "label"}.intersection(names.values()), names)
        except (InputError, pa.ArrowInvalid):
            pass


def test_a_key_that_is_written_with_escapes_is_the_same_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"te\\u0078t": "a"}\n{"text": "b"}')
    names, _ = json_columns.column_names(read_text(tmp_path / "a.jsonl"))
    assert set(names.values()) == {"text"}
    assert json_columns.read_json(read_text(tmp_path / "a.jsonl"), ["text"], names).to_pydict() == {"text": ["a", "b"]}


def test_types_are_those_of_all_rows(tmp_path: Path) -> None:
    rows = [{"a": None, "b": 1, "c": None}] * 5000 + [{"a": "x", "b": 1.5, "c": None}]
    path = written(tmp_path / "a.jsonl", rows)
    table = json_columns.read_json(read_text(path), ["a", "b", "c"], json_columns.column_names(read_text(path))[0])
    assert table.schema.types == [pa.string(), pa.float64(), pa.null()]


def test_a_mistake_in_a_column_that_is_not_used_is_no_mistake(tmp_path: Path) -> None:
    rows = [{"text": f"word {i}", "label": i % 2, "unused": i if i % 3 else [str(i)]} for i in range(40)]
    assert train_rows(written(tmp_path / "a.jsonl", rows)) == 40


def test_a_fault_of_the_file_comes_before_a_column_that_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"other": "a", "label": 1}\n{"other": }')
    with pytest.raises(InputError, match=r"^data\.path=.*JSON parse error: Invalid value, in row 1; allowed is"):
        train_rows(tmp_path / "a.jsonl")


# ------------------------------------------------------------------------------------------------- bounds


def test_any_number_of_keys_inside_of_a_column_is_read(tmp_path: Path) -> None:
    rows = [{"text": f"word {i}", "label": i % 2, "meta": {f"id{i}": {f"x{i}": 1}}} for i in range(9000)]
    assert train_rows(written(tmp_path / "a.jsonl", rows)) == 9000


def test_keys_inside_of_a_column_that_is_used_become_no_columns(tmp_path: Path) -> None:
    rows = [{"text": f"word {i}", "class": i % 2, "label": [[{f"id{i}": 1}]]} for i in range(9000)]
    path = written(tmp_path / "a.jsonl", rows)
    found, grown = cost(lambda: train_rows(path, label="class"))
    assert (found, grown < 200_000_000) == (9000, True)


def test_more_columns_than_a_table_has_are_refused(tmp_path: Path) -> None:
    row = {"text": "a", "label": 1, **{f"c{i}": 1 for i in range(5000)}}
    with pytest.raises(InputError, match=r"^data\.path=.*: allowed is at most 5000 different keys$"):
        train_rows(written(tmp_path / "a.jsonl", [row]))


LONG: dict[str, tuple[Callable[[], str], int]] = {
    "a string of 50 MB": (lambda: '{"text": "%s", "label": 1}' % ("x" * 50_000_000), 600_000_000),
    "such a string that isn't used": (lambda: '{"text": "a", "x": "%s"}' % ("x" * 50_000_000), 400_000_000),
    "escapes": (lambda: '{"text": "%s", "label": 1}' % (r"\\" * 10_000_000), 300_000_000),
    "lists": (lambda: '{"text": "a", "x": [[]' + ",[]" * 7_000_000 + "]}", 300_000_000),
    "objects": (lambda: '{"text": "a", "label": [null' + ",null,{}" * 3_000_000 + "]}", 500_000_000),
    "empty rows": (lambda: "{}" * 5_000_000, 400_000_000),
    "spaces": (lambda: '{"text": "a", "label":%s1}' % (" " * 20_000_000), 300_000_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", LONG)
def test_long_files_take_a_few_times_their_size_and_a_few_seconds(what: str, tmp_path: Path) -> None:
    make, most = LONG[what]
    path = tmp_path / "a.jsonl"
    path.write_text(make())
    began = time.monotonic()
    found, grown = cost(lambda: sizes(path))
    assert isinstance(found, dict) is (what != "empty rows"), found  # rows without any column are refused
    assert grown < most
    assert time.monotonic() - began < 20  # one to three on an idle machine
