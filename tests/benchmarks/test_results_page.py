from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_results
from benchmarks.results import page, plot
from benchmarks.results.made import index
from benchmarks.results.table import Plot, Table
from matplotlib.figure import Figure
from PIL import Image

REPO = Path(__file__).parents[2]
CALL = (
    "import sys, pathlib; from benchmarks.results.cli import main;"
    "code = main(['toy'], pathlib.Path('tables'), pathlib.Path('results'));"
    "print([name for name in ('torch', 'lightning', 'matplotlib') if name in sys.modules]); sys.exit(code)"
)


@pytest.fixture
def toy(tmp_path: Path) -> Table:
    return toy_results.table(tmp_path)


def text(toy: Table, folder: Path) -> str:
    return page.text(toy, page.finished(toy, toy_results.finish(toy, folder)))


def line(markdown: str, start: str) -> list[str]:
    found = next(line for line in markdown.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_rows_have_mean_and_deviation_and_the_best_is_bold(toy: Table, tmp_path: Path) -> None:
    shown = text(toy, tmp_path)
    assert line(shown, "Plain") == ["Plain", "0.516 ± 0.016", "3.0 ± 0.0", "9.00 ± 0.00"]
    assert line(shown, "Fancy") == ["Fancy", "**0.641 ± 0.016**", "2.0 ± 0.0", "6.00 ± 0.00"]
    assert "are missing:" not in shown


def test_equal_means_are_both_bold(toy: Table, tmp_path: Path) -> None:
    store = toy_results.finish(toy, tmp_path)
    for cell in toy.cells():
        store.write(cell, toy_results.record(cell))
    shown = page.text(toy, page.finished(toy, store))
    assert line(shown, "Plain")[1] == line(shown, "Fancy")[1] == "**0.500 ± 0.000**"


def test_pairs_have_difference_interval_and_signs(toy: Table, tmp_path: Path) -> None:
    assert line(text(toy, tmp_path), "Fancy; Plain")[1:] == [
        "**+0.125** ± 0.000 [+0.125, +0.125], 3/3",
        "**-1.0** ± 0.0 [-1.0, -1.0], 3/3",
        "rounds, bytes up, bytes down",
    ]


def test_a_column_with_a_margin_says_which_pairs_are_equivalent(tmp_path: Path) -> None:
    lines = toy_results.YAML.replace("paired: true}", "paired: true, margin: 0.2}", 1)
    wide = text(toy_results.table(tmp_path, lines), tmp_path)
    assert line(wide, "Fancy; Plain")[1] == "**+0.125** ± 0.000 [+0.125, +0.125], 3/3 ≈"
    assert "≈: equivalent by two one-sided tests at 5 %, within 0.200 in test accuracy." in wide
    narrow = text(toy_results.table(tmp_path, lines.replace("0.2}", "0.1}")), tmp_path)
    assert line(narrow, "Fancy; Plain")[1] == "**+0.125** ± 0.000 [+0.125, +0.125], 3/3"


def test_a_row_with_seeds_of_its_own_says_how_many(toy: Table, tmp_path: Path) -> None:
    toy = dataclasses.replace(toy, rows=[toy.rows[0], dataclasses.replace(toy.rows[1], seeds=[0])])
    shown = text(toy, tmp_path)
    assert line(shown, "Fancy")[0] == "Fancy (1 seed)"
    assert "Rows with other seeds say how many they have" in shown


def test_a_target_that_some_seeds_do_not_reach_says_how_many_do(toy: Table, tmp_path: Path) -> None:
    store = toy_results.finish(toy, tmp_path)
    low = toy.cells(["plain"], [1])[0]
    store.write(low, toy_results.record(low, (0.1, 0.2, 0.3)))
    shown = page.text(toy, page.finished(toy, store))
    assert line(shown, "Plain")[2:] == ["> 3 (2 of 3 reach it)", "> 9.00 (2 of 3 reach it)"]
    assert line(shown, "Fancy; Plain")[2] == page.NONE


def test_a_row_may_have_a_target_of_its_own(toy: Table, tmp_path: Path) -> None:
    toy = dataclasses.replace(toy, rows=[toy.rows[0], dataclasses.replace(toy.rows[1], target=0.3)])
    assert line(text(toy, tmp_path), "Fancy")[2] == "2.0 ± 0.0"
    toy = dataclasses.replace(toy, rows=[toy.rows[0], dataclasses.replace(toy.rows[1], target=0.25)])
    assert line(text(toy, tmp_path), "Fancy")[2] == "1.0 ± 0.0"


def test_missing_cells_are_named_and_rows_without_any_left_out(toy: Table, tmp_path: Path) -> None:
    store = toy_results.finish(toy, tmp_path)
    for cell in toy.cells(["fancy"]) + toy.cells(["plain"], [2]):
        store.path(cell).unlink()
    shown = page.text(toy, page.finished(toy, store))
    assert "**4 of 6 cells are missing:** `plain` with seed 2; `fancy`." in shown
    assert line(shown, "Plain")[0] == "Plain (2 of 3 seeds)"
    assert "| Fancy |" not in shown.partition("## How")[0]


def test_the_page_says_how_it_was_made_and_nothing_of_the_machine(toy: Table, tmp_path: Path) -> None:
    shown = text(dataclasses.replace(toy, notes="## What was found\n\nMuch.\n"), tmp_path)
    assert "make results TABLE=toy" in shown
    assert line(shown, "`fancy`") == ["`fancy`", "Fancy", "`algo=hafl` `rounds=4`"]
    assert "6 cells took 30.0 s, added up" in shown
    assert "2 cores of a CPU" in shown
    assert "torch 2.13.0" in shown
    assert "## What was found\n\nMuch.\n\n## How" in shown
    assert os.uname().nodename not in shown
    assert str(tmp_path) not in shown


def test_the_command_by_hand_makes_the_small_language_model(toy: Table, tmp_path: Path) -> None:
    shown = text(dataclasses.replace(toy, common=[*toy.common, "model=small_lm"]), tmp_path)
    assert 'model="$(make -s small-lm)"' in shown
    assert "model=small_lm" not in shown.partition("One cell by hand")[2]


def test_a_page_needs_a_finished_cell(toy: Table, tmp_path: Path) -> None:
    store = toy_results.finish(toy, tmp_path)
    for cell in toy.cells():
        store.path(cell).unlink()
    assert page.publish(toy, store, tmp_path / "results") == []


def test_pictures_are_small_and_the_same_bytes_again(toy: Table, tmp_path: Path) -> None:
    store = toy_results.finish(toy, tmp_path)
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        page.publish(toy, store, folder)
        made.append((folder / "toy-acc.png").read_bytes())
    assert made[0] == made[1]
    assert len(made[0]) < 150_000


def test_a_picture_is_drawn_anew_when_what_it_shows_has_changed(toy: Table, tmp_path: Path) -> None:
    records = page.finished(toy, toy_results.finish(toy, tmp_path))
    assert plot.publish(toy, toy.plots[0], records, tmp_path) == [tmp_path / "toy-acc.png"]
    assert plot.publish(toy, toy.plots[0], records, tmp_path) == []
    records["plain"][0].history["round/val_acc"][0] = 0.0
    assert plot.publish(toy, toy.plots[0], records, tmp_path) == [tmp_path / "toy-acc.png"]
    assert Image.open(tmp_path / "toy-acc.png").info.keys() >= {plot.INPUTS}


def test_rows_of_one_label_are_told_apart_by_their_headings(tmp_path: Path) -> None:
    text = toy_results.YAML.replace("label: Fancy", "label: Plain").replace(
        "rounds=4], group: Recipes", "rounds=4], group: Ours"
    )
    made = toy_results.table(tmp_path, text)
    records = page.finished(made, toy_results.finish(made, tmp_path))
    assert [line.label for line in plot.lines(made, made.plots[0], records)] == ["Plain, Recipes", "Plain, Ours"]


def test_only_pictures_with_a_curve_are_shown(toy: Table, tmp_path: Path) -> None:
    shown = text(dataclasses.replace(toy, plots=[*toy.plots, Plot("f1", "round/val_f1", ["plain"])]), tmp_path)
    assert "](toy-acc.png)" in shown
    assert "toy-f1.png" not in shown


def test_curves_are_means_with_the_range_of_the_seeds(toy: Table, tmp_path: Path) -> None:
    store = toy_results.finish(toy, tmp_path)
    low = toy.cells(["plain"], [1])[0]
    store.write(low, toy_results.record(low, (0.1, None, 0.2)))
    across = dataclasses.replace(toy.plots[0], x="bytes")
    line = plot.lines(toy, across, page.finished(toy, store))[0]
    assert (line.x, line.mean, line.low, line.high) == ([3.0, 9.0], [0.2, 0.4], [0.1, 0.2], [0.25, 0.5])


def test_curves_can_run_over_the_hours_of_the_simulated_clock(toy: Table, tmp_path: Path) -> None:
    hours = [0.5, 1.0, 2.5]
    records = {
        row: [dataclasses.replace(one, history={**one.history, "time/simulated_hours": hours}) for one in found]
        for row, found in page.finished(toy, toy_results.finish(toy, tmp_path)).items()
    }
    over = dataclasses.replace(toy.plots[0], x="hours")
    line = plot.lines(toy, over, records)[0]
    assert line.x == hours
    assert line.mean == plot.lines(toy, toy.plots[0], records)[0].mean
    assert plot.png(over, [line], None, "digest").startswith(b"\x89PNG")


def test_ends_are_one_point_for_each_row_at_the_mean_with_the_deviation(
    toy: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = toy_results.finish(toy, tmp_path)
    records = page.finished(toy, store)
    ends = dataclasses.replace(toy.plots[0], x="bytes", y="test/acc", ends=True, rows=["plain", "fancy", "plain"])
    tests = [record.test["acc"] for record in records["plain"]]
    line, *_ = shown = plot.lines(toy, ends, records)
    assert line.mean == [pytest.approx(np.mean(tests))]
    assert line.high[0] - line.mean[0] == pytest.approx(np.std(tests, ddof=1), abs=1e-6)
    assert line.x == plot.lines(toy, dataclasses.replace(ends, ends=False, y="round/val_acc"), records)[0].x[-1:]
    assert len({found.style for found in shown}) == 3
    drawn: list[object] = []
    monkeypatch.setattr("matplotlib.axes.Axes.errorbar", lambda *args, **kwargs: drawn.append(kwargs["yerr"]))
    plot.png(ends, shown, None, "")
    assert len(drawn) == 3
    assert plot.lines(toy, dataclasses.replace(ends, y="test/f1"), records) == []


@pytest.mark.parametrize(("rows", "bands"), [(4, 4), (5, 0)])
def test_bands_of_the_seeds_are_drawn_and_told_where_they_do_not_cover_one_another(
    rows: int, bands: int, toy: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr("matplotlib.axes.Axes.fill_between", lambda *args, **kwargs: drawn.append(args))
    more = [dataclasses.replace(toy.rows[1], id=f"more{n}", label=f"More {n}") for n in range(rows - 2)]
    shown = dataclasses.replace(toy.plots[0], rows=["plain", "fancy", *(row.id for row in more)])
    toy = dataclasses.replace(toy, rows=[*toy.rows, *more], plots=[shown])
    page.publish(toy, toy_results.finish(toy, tmp_path), tmp_path)
    assert len(drawn) == bands
    assert ("A band in a picture" in (tmp_path / "toy.md").read_text()) is bool(bands)


@pytest.mark.parametrize(("points", "marker"), [(8, "o"), (9, "None")])
def test_few_points_are_marked(points: int, marker: str, toy: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (found.append(self), real(self, *args, **kw)))
    line = plot.Line("a", "C0-", [float(n) for n in range(points)], *[[0.5] * points] * 3)
    plot.png(toy.plots[0], [line], None, "")
    assert found[0].axes[0].lines[0].get_marker() == marker


@pytest.mark.parametrize(("cheapest", "expected"), [(10.0, False), (0.1, True)])
def test_megabytes_are_on_a_logarithmic_axis_where_rows_differ_widely(
    cheapest: float, expected: bool, toy: Table
) -> None:
    shown = [plot.Line("a", "-", [cheapest / 2, cheapest], *[[0.1, 0.2]] * 3), plot.Line("b", "-", [9.0], *[[0.1]] * 3)]
    assert plot.logarithmic(dataclasses.replace(toy.plots[0], x="bytes"), shown) is expected
    assert not plot.logarithmic(toy.plots[0], shown)


def test_the_list_of_the_tables_leaves_other_text_alone(toy: Table, tmp_path: Path) -> None:
    store = toy_results.finish(toy, tmp_path)
    (tmp_path / "README.md").write_text("Written by hand.\n")
    assert index([toy], store, tmp_path) == [tmp_path / "README.md"]
    assert index([toy], store, tmp_path) == []
    shown = (tmp_path / "README.md").read_text()
    assert "[A toy table](toy.md), `make results TABLE=toy`: 6 cells" in shown
    assert shown.endswith("\nWritten by hand.\n")
    store.path(toy.cells()[0]).unlink()
    index([toy], store, tmp_path)
    assert (tmp_path / "README.md").read_text() == shown.replace("6 cells", "5 of 6 cells")


@pytest.mark.slow
def test_a_second_call_changes_nothing_and_imports_nothing_heavy(toy: Table, tmp_path: Path) -> None:
    toy_results.finish(toy, tmp_path)
    said, states = [], []
    for _ in range(2):
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        call = [sys.executable, "-c", CALL]
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        said.append(done.stdout)
        paths = sorted(path for path in (tmp_path / "results").rglob("*") if path.is_file())
        states.append([(path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in paths])
    assert "wrote results/toy.md" in said[0]
    assert states[0] == states[1]
    assert said[1].splitlines() == ["every cell is finished and every page is up to date: nothing to do", "[]"]
