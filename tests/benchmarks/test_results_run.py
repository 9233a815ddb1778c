from __future__ import annotations

import multiprocessing
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import toy_results
from benchmarks.results import pool
from benchmarks.results.cell import Cell, Record, Store
from benchmarks.results.cli import main
from benchmarks.results.table import Table

REPO = Path(__file__).parents[2]


@pytest.fixture
def toy(tmp_path: Path) -> Table:
    return toy_results.table(tmp_path)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def call(folder: Path, *arguments: str) -> int:
    return main(["toy", *arguments], folder / "tables", folder / "results")


def fake_run(started: list[str], interrupt_after: int | None = None):
    def run(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Record | str]]:
        for cell in cells:
            if len(started) == interrupt_after:
                raise KeyboardInterrupt
            started.append(cell.name)
            yield cell, toy_results.record(cell) if cell.name != "toy/plain-1" else "boom"

    return run


@pytest.mark.slow
def test_a_failing_cell_and_a_dying_process_do_not_stop_the_others(
    toy: Table, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "serve", toy_results.serve)
    answers = {cell.name: answer for cell, answer in pool.run(toy.cells(), jobs=2)}
    assert answers.keys() == {cell.name for cell in toy.cells()}
    kept = {name for name, answer in answers.items() if isinstance(answer, Record)}
    assert kept == {"toy/plain-0", "toy/fancy-0"}
    assert answers["toy/plain-1"] == "it failed"
    assert answers["toy/plain-2"] == "the process that ran it ended with exit code 3"
    assert not multiprocessing.active_children()
    assert not list(temporary.iterdir())


def test_processes_and_folders_are_gone_when_a_run_is_broken_off(
    toy: Table, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "serve", toy_results.serve)
    answers = pool.run(toy.cells(), jobs=2)
    next(answers)
    assert multiprocessing.active_children()
    answers.close()
    assert not multiprocessing.active_children()
    assert not list(temporary.iterdir())


def test_finished_cells_are_skipped_and_changed_ones_run_anew(
    toy: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_results.finish(toy, tmp_path)
    started: list[str] = []
    monkeypatch.setattr(pool, "run", fake_run(started))
    assert call(tmp_path) == 0
    assert started == []
    toy_results.table(tmp_path, toy_results.YAML.replace("rounds=4", "rounds=5"))
    assert call(tmp_path) == 0
    assert started == ["toy/fancy-0", "toy/fancy-1", "toy/fancy-2"]


def test_a_failed_cell_is_named_at_the_end_and_the_page_lacks_it(
    toy: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr(pool, "run", fake_run(started))
    assert call(tmp_path) == 1
    assert len(started) == 6
    shown = capsys.readouterr().out
    assert "boom" in shown
    assert "1 of 6 cells failed: toy/plain-1" in shown
    assert "`plain` with seed 1" in (tmp_path / "results" / "toy.md").read_text()


def test_an_interrupt_keeps_what_is_finished(toy: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "run", fake_run([], interrupt_after=1))
    assert call(tmp_path) == 130
    store = Store(tmp_path / "results" / "cells")
    assert [cell.name for cell in toy.cells() if store.read(cell)] == ["toy/plain-0"]


def test_only_the_chosen_cells_run(toy: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(pool, "run", fake_run(started))
    assert call(tmp_path, "--cells", "fancy", "--seeds", "0,2") == 0
    assert started == ["toy/fancy-0", "toy/fancy-2"]


def test_learning_rates_are_tried_before_the_cells_and_not_for_seeds_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(pool, "run")
    rates = "control: plain\nrates: {grid: [0.1], rows: [fancy]}"
    toy_results.table(tmp_path, toy_results.YAML.replace("control: plain", rates))
    assert call(tmp_path, "--list", "--cells", "fancy") == 0
    assert capsys.readouterr().out.split() == ["toy/fancy@0.1-0", "toy/fancy-0", "toy/fancy-1", "toy/fancy-2"]
    assert call(tmp_path, "--list", "--cells", "fancy", "--seeds", "1") == 0
    assert capsys.readouterr().out.split() == ["toy/fancy-1"]


def test_list_and_write_run_nothing(
    toy: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(pool, "run")
    store = toy_results.finish(toy, tmp_path)
    store.path(toy.cells()[3]).unlink()
    assert call(tmp_path, "--list") == 0
    assert capsys.readouterr().out == "toy/fancy-1\n"
    assert not (tmp_path / "results" / "toy.md").exists()
    assert call(tmp_path, "--write") == 0
    assert (tmp_path / "results" / "toy.md").exists()


def test_cells_that_are_gone_are_ignored_until_they_are_pruned(
    toy: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = toy_results.finish(toy, tmp_path)
    gone = Cell("toy", "gone", 0, [])
    store.write(gone, toy_results.record(gone))
    assert call(tmp_path) == 0
    assert "gone-0 is no cell of toy: ignored" in capsys.readouterr().out
    assert call(tmp_path, "--prune") == 0
    assert not store.path(gone).exists()


@pytest.mark.parametrize(("accuracy", "code", "said"), [(0.5, 0, "the same again"), (0.625, 1, "test/acc: 0.625")])
def test_again_compares_with_the_kept_cell(
    accuracy: float,
    code: int,
    said: str,
    toy: Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, cell = toy_results.finish(toy, tmp_path), toy.cells()[1]
    store.write(cell, toy_results.record(cell, test=accuracy))
    monkeypatch.setattr(pool, "run", fake_run([]))
    assert call(tmp_path, "--again", "fancy") == code
    assert said in capsys.readouterr().out
    assert store.read(cell) == toy_results.record(cell, test=accuracy)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--cells", "nope"], "nope"), (["--again", "plain"], "toy/plain-0"), (["--jobs", "0"], "--jobs=0")],
    ids=["row", "unfinished", "jobs"],
)
def test_a_mistake_is_one_line(
    arguments: list[str], named: str, toy: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert named in said


@pytest.mark.parametrize(("data", "named"), [("newsgroups20", "newsgroups20.parquet"), ("glue", "glue_sst2.parquet")])
@pytest.mark.parametrize("folder", [None, "empty"])
def test_data_that_is_not_there_is_said_before_anything_runs(
    folder: str | None, data: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    toy_results.table(tmp_path, toy_results.YAML.replace("data=digits", f"data={data}"))
    monkeypatch.delattr(pool, "run")
    monkeypatch.delenv("FLT_DATA", raising=False)
    if folder:
        monkeypatch.setenv("FLT_DATA", str(tmp_path / folder))
    assert call(tmp_path) == 2
    said = capsys.readouterr().err
    assert "FLT_DATA" in said
    assert named in said
    assert said.count("\n") == 1


def test_of_several_sets_only_those_that_are_used_have_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLT_DATA", str(tmp_path))
    monkeypatch.delattr(pool, "run")
    (tmp_path / "glue_sst2.parquet").touch()
    toy_results.table(tmp_path, toy_results.YAML.replace("data=digits", '"data=glue", "data.use=[sst2,rte]"'))
    assert call(tmp_path) == 2
    assert "glue_rte.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ([], []),
        (["TABLE=hafl", "RESULTSARGS=--list --seeds 0"], ["hafl", "--list", "--seeds", "0"]),
        (["TABLE=$x"], ["$x"]),
    ],
    ids=["all", "table", "dollar"],
)
def test_make_passes_on_what_it_is_given(given: list[str], arguments: list[str]) -> None:
    made = ("-o", ".venv/.minilm", "-o", ".venv/.installed")
    command = ["make", "-n", "--no-print-directory", *made, "results", *given]
    done = subprocess.run(command, cwd=REPO, text=True, capture_output=True, check=True)
    line = done.stdout.strip().splitlines()[-1]
    assert shlex.split(line) == ["exec", ".venv/bin/python", "-m", "benchmarks.results", *arguments]


@pytest.mark.slow
def test_a_real_table_from_nothing_to_the_page_and_again(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = toy_results.YAML.replace("seeds: [0, 1, 2]", "seeds: [0]")
    broken = "  - {id: broken, label: Broken, overrides: [algo=fedit, rule.nope=1], group: Recipes}\ncolumns:"
    toy_results.table(tmp_path, text.replace("columns:", broken))
    assert call(tmp_path, "--jobs", "1") == 1
    assert "rule.nope=1: there is no such key" in capsys.readouterr().out
    assert b"are missing:" in (tmp_path / "results" / "toy.md").read_bytes()
    toy_results.table(tmp_path, text)
    assert call(tmp_path, "--jobs", "1") == 0
    page = (tmp_path / "results" / "toy.md").read_bytes()
    assert b"are missing:" not in page
    assert call(tmp_path) == 0
    assert (tmp_path / "results" / "toy.md").read_bytes() == page
    assert call(tmp_path, "--again", "fancy") == 0  # alone now, in a process of its own
    assert "all figures are the same again" in capsys.readouterr().out
    assert not list(temporary.iterdir())
