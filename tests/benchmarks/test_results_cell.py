from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import toy_results
from benchmarks.results import cell as cells
from benchmarks.results.cell import Cell, Store, differences, rounded, series, write

CELL = Cell("toy", "plain", 0, ["algo=fedit", "rounds=3"])


def changed(**to: object) -> Cell:
    return dataclasses.replace(CELL, **to)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    store, record = Store(tmp_path), toy_results.record(CELL, (0.25, None, 0.5))
    store.write(CELL, record)
    assert store.read(CELL) == record
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["plain-0.json"]


@pytest.mark.parametrize(
    "other",
    [changed(seed=1), changed(overrides=["algo=fedit", "rounds=4"]), changed(overrides=["algo=fedit"])],
    ids=["seed", "value", "fewer"],
)
def test_what_changes_the_figures_changes_the_fingerprint(other: Cell) -> None:
    assert other.fingerprint != CELL.fingerprint


def test_order_and_names_leave_the_fingerprint() -> None:
    assert changed(overrides=CELL.overrides[::-1], table="other", row="other").fingerprint == CELL.fingerprint


def test_a_new_format_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = CELL.fingerprint
    monkeypatch.setattr(cells, "FORMAT", cells.FORMAT + 1)
    assert CELL.fingerprint != before


def test_a_record_of_other_overrides_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(CELL, toy_results.record(CELL))
    assert store.read(changed(overrides=["algo=hafl"])) is None


@pytest.mark.parametrize("text", ["", "{}", '{"table": "toy"}', "[1]"])
def test_a_broken_file_is_no_record(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store.path(CELL), text.encode())
    assert store.read(CELL) is None


def test_files_of_rows_that_are_gone_are_strangers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for cell in (CELL, changed(row="gone")):
        store.write(cell, toy_results.record(cell))
    assert [path.name for path in store.strangers("toy", [CELL])] == ["gone-0.json"]


@pytest.mark.parametrize(
    ("value", "short"),
    [(1 / 3, 0.333333), (1234567.0, 1234570), (1e-9 / 3, 3.33333e-10), (0.5, 0.5), (3.0, 3), (math.nan, None)],
)
def test_six_digits_are_kept(value: float, short: float | None) -> None:
    assert rounded(value) == short
    assert json.dumps(rounded(value)) == json.dumps(short)


def test_series_keep_the_chosen_metrics_with_none_where_a_round_has_no_value() -> None:
    found = series([{"round": 1, "round/val_acc": 0.5, "time/round_seconds": 1.0}, {"round": 2, "ranks/changed": 2.0}])
    assert found == {"ranks/changed": [None, 2], "round/val_acc": [0.5, None]}


def test_differences_are_named_by_metric_and_round_and_times_may_differ() -> None:
    old = toy_results.record(CELL, (0.25, 0.333333, 0.5))
    new = toy_results.record(CELL, (0.25, 0.333334, 0.51), test=0.6)
    new.history["time/total_seconds"] = [9.0, 9.0, 9.0]
    assert differences(old, new) == {"round/val_acc in round 3": (0.5, 0.51), "test/acc": (0.5, 0.6)}


def test_a_metric_that_only_one_run_has_is_a_difference() -> None:
    old, new = toy_results.record(CELL), toy_results.record(CELL)
    del new.test["acc"]
    assert differences(old, new) == {"test/acc": (0.5, None)}


def test_the_same_bytes_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.md"
    assert write(path, b"one")
    assert not write(path, b"one")
    assert write(path, b"two")
    assert [found.name for found in path.parent.iterdir()] == ["page.md"]
