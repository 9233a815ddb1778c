"""Files of predictions: what is written is read again, whatever the texts hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from flt.core.errors import InputError
from flt.inference.outputs import writer

ODD = ["=1+2", "+3", "-4", "@a", 'a "b", c', "two\nlines", "one\rtwo", "\u20ac, \u4e2d", "", " x "]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_odd_texts_are_read_again_as_they_were(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{ending}"
    with writer(path) as write:
        for part in (ODD[:4], ODD[4:]):
            write({"text": part, "p": [0.5] * len(part)})
        assert not path.exists()
    if ending == ".csv":
        with path.open(newline="") as file:
            found = [row["text"] for row in csv.DictReader(file)]
    elif ending == ".jsonl":
        found = [json.loads(line)["text"] for line in path.read_text().split("\n")[:-1]]
    else:
        found = pyarrow.parquet.read_table(path)["text"].to_pylist()
    assert found == ODD
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "out.csv") as write:
        write({"a": [1 / 0]})
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with writer(tmp_path / "out.jsonl") as write:
        write({"a": [float("nan"), 1.5, None]})
    assert [json.loads(line)["a"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [None, 1.5, None]


def test_values_of_several_types_do_not_fit_into_parquet(tmp_path: Path) -> None:
    with writer(tmp_path / "out.parquet") as write:
        write({"a": [1]})
        with pytest.raises(InputError, match="a column has values of several types"):
            write({"a": ["x"]})
