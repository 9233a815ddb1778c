import csv
import errno
import math
import shutil
from pathlib import Path

import pytest
from fake_federator import federator_of

from flt.callbacks.metrics_csv import MetricsCsv, text
from flt.core.errors import InputError


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_line_per_round_with_round_first_and_keys_in_name_order(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    federator_of([MetricsCsv(path)]).fit()
    header, *lines = path.read_text().splitlines()
    keys = header.split(",")
    assert keys[0] == "round"
    assert keys[1:] == sorted(keys[1:])
    assert [line.split(",")[0] for line in lines] == ["1", "2", "3"]


def test_file_is_whole_after_each_round(tmp_path):
    path = tmp_path / "metrics.csv"
    federator_of([MetricsCsv(path)]).fit(until=2)
    assert [row["round"] for row in rows_of(path)] == ["1", "2"]
    assert [left.name for left in tmp_path.iterdir()] == ["metrics.csv"]


def test_floats_round_trip_and_integers_stay_integers(tmp_path):
    import numpy as np

    values = {"a": 0.1 + 0.2, "b": float(np.nextafter(1, 2)), "c": np.float64(1 / 3), "d": 2**60, "e": 1e-300}
    path = tmp_path / "metrics.csv"
    federator_of([MetricsCsv(path)], rounds=1, figures=lambda round: values).fit()
    (row,) = rows_of(path)
    assert {key: float(row[key]) for key in values} == values
    assert row["d"] == str(2**60)


def test_a_figure_that_a_round_lacks_is_an_empty_cell():
    assert text([{"round": 1, "b": 0.5}, {"round": 2, "a": math.nan}]) == "round,a,b\n1,,0.5\n2,nan,\n"


def test_file_of_a_resumed_run_equals_that_of_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    federator_of([MetricsCsv(whole)]).fit()
    federator_of([MetricsCsv(parts)]).fit(until=2)
    resumed = federator_of([MetricsCsv(parts)])
    first = federator_of([])
    first.fit(until=1)  # the checkpoint is older than the file
    resumed.history, resumed.state = first.history, first.state
    resumed.fit()
    assert parts.read_bytes() == whole.read_bytes()


def test_figures_left_after_the_last_round_are_written_too(tmp_path):
    path = tmp_path / "metrics.csv"
    federator = federator_of([MetricsCsv(path)])
    federator.fit(until=3)
    federator.history[-1]["test/acc"] = 0.75
    federator.call("on_fit_end")
    assert [row["test/acc"] for row in rows_of(path)] == ["", "", "0.75"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    federator = federator_of([MetricsCsv(path)])
    federator.fit(until=1)
    before = path.read_bytes()

    def failing(path, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(InputError, match=r"^metrics\.csv=\?: Permission denied; allowed is"):
        federator.run_round()
    assert path.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_folder_that_is_removed_is_not_made_again(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    federator = federator_of([MetricsCsv(path)])
    federator.fit(until=1)
    shutil.rmtree(path.parent)
    with pytest.raises(InputError, match=r"^metrics\.csv=\?: No such file or directory; allowed is"):
        federator.run_round()
    assert not path.parent.exists()
