from __future__ import annotations

from pathlib import Path

import pytest
import toy_results
from benchmarks.results.cli import TABLES
from benchmarks.results.table import load, names

from flt.core.errors import InputError
from flt.run.compose import load_config


def test_a_row_replaces_the_common_value_of_its_key(tmp_path: Path) -> None:
    toy = toy_results.table(tmp_path)
    plain, fancy = (toy.overrides(row) for row in toy.rows)
    assert "rounds=3" in plain
    assert "rounds=3" not in fancy
    assert "rounds=4" in fancy


def test_cells_come_seed_by_seed_and_rows_may_have_seeds_of_their_own(tmp_path: Path) -> None:
    text = toy_results.YAML.replace("group: Recipes}", "group: Recipes, seeds: [1, 5]}", 1)
    cells = toy_results.table(tmp_path, text).cells()
    assert [cell.name for cell in cells] == ["toy/plain-1", "toy/fancy-1", "toy/plain-5", "toy/fancy-0", "toy/fancy-2"]


def test_cells_can_be_chosen_by_row_and_seed(tmp_path: Path) -> None:
    toy = toy_results.table(tmp_path)
    assert [cell.name for cell in toy.cells(["fancy"], [2, 9])] == ["toy/fancy-2"]
    with pytest.raises(InputError, match="fanciest"):
        toy.cells(["fanciest"])


WRONG = {
    "unknown key": ("title: A toy", "titel: x\ntitle: A toy", "titel"),
    "no control": ("control: plain", "", "control"),
    "a control that isn't there": ("control: plain", "control: gone", "gone"),
    "missing key": ("seeds: [0, 1, 2]", "", "seeds"),
    "unknown key of a row": ("label: Plain", "lable: x, label: Plain", "lable"),
    "unknown reducer": ("reduce: test", "reduce: median", "median"),
    "row twice": ("id: fancy", "id: plain", "plain"),
    "pair without a row": ("[fancy, plain]", "[fancy, gone]", "gone"),
    "plot without a row": ("rows: [plain, fancy]", "rows: [gone]", "gone"),
    "trials of a row that isn't there": (
        "control: plain",
        "control: plain\nrates: {grid: [0.1], rows: [gone]}",
        "gone",
    ),
    "a learning rate of zero": ("control: plain", "control: plain\nrates: {grid: [0], rows: [plain]}", "rates.grid"),
    "seed in an override": ("algo=fedit", "seed=3", "seed=3"),
    "absolute path": ("algo=fedit", "model=/models/mine", "/models/mine"),
    "text for a list": ("seeds: [0, 1, 2]", "seeds: many", "seeds"),
    "no YAML": ("title: A", "title: : A", "toy.yaml"),
}


@pytest.mark.parametrize(("old", "new", "named"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line_that_names_it(old: str, new: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named) as caught:
        toy_results.table(tmp_path, toy_results.YAML.replace(old, new))
    assert "\n" not in str(caught.value)


def test_notes_come_from_a_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "toy.notes.md").write_text("## What was found\n")
    assert toy_results.table(tmp_path).notes == "## What was found\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", names(TABLES))
def test_every_table_has_rows_that_flt_accepts(name: str) -> None:
    table = load(TABLES / f"{name}.yaml")
    for row in table.rows:
        load_config(table.overrides(row))


RATES = "control: plain\nrates: {grid: [0.1, 0.2], rows: [plain]}"


def test_a_trial_changes_the_learning_rate_alone_and_has_the_first_seed(tmp_path: Path) -> None:
    toy = toy_results.table(tmp_path, toy_results.YAML.replace("control: plain", RATES))
    trials = toy.trials()
    assert [cell.name for cell in trials.values()] == ["toy/plain@0.1-0", "toy/plain@0.2-0"]
    assert trials["plain", 0.2].overrides == [*toy.overrides(toy.row("plain")), "local.lr=0.2"]
    assert toy.trials(["fancy"]) == {}


def test_the_trial_of_the_rate_in_use_is_the_cell_of_the_row(tmp_path: Path) -> None:
    text = toy_results.YAML.replace("control: plain", RATES).replace("[algo=fedit]", "[algo=fedit, local.lr=2e-1]")
    toy = toy_results.table(tmp_path, text)
    assert toy.trials()["plain", 0.2] in toy.cells()
    assert toy.trials()["plain", 0.1].overrides.count("local.lr=0.1") == 1
    assert not [o for o in toy.trials()["plain", 0.1].overrides if o == "local.lr=2e-1"]
