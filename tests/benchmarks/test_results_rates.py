from __future__ import annotations

from pathlib import Path

import pytest
import toy_results
from benchmarks.results import page, rates
from benchmarks.results.cell import Store
from benchmarks.results.table import Table


@pytest.fixture
def toy(tmp_path: Path) -> Table:
    rates_of = "control: plain\nrates: {grid: [0.1, 0.2, 0.4], rows: [plain, fancy]}"
    text = toy_results.YAML.replace("control: plain", rates_of).replace("[algo=fedit]", "[algo=fedit, local.lr=0.2]")
    return toy_results.table(tmp_path, text)


def finish(toy: Table, store: Store, losses: dict[tuple[str, float], float | None]) -> None:
    for key, value in losses.items():
        cell = toy.trials()[key]
        record = toy_results.record(cell)
        record.history["round/val_loss"] = [2.0, value]
        store.write(cell, record)


def test_the_page_shows_the_losses_of_all_trials_and_the_least_is_bold(toy: Table, tmp_path: Path) -> None:
    store = Store(tmp_path / "cells")
    finish(toy, store, {("plain", 0.1): 1.5, ("plain", 0.2): 1.25, ("plain", 0.4): None, ("fancy", 0.1): 0.5})
    shown = page.text(toy, page.finished(toy, store), rates.finished(toy, store))
    assert "| Plain (`plain`) | 1.5000 | **1.2500** | – | 0.2 |" in shown
    assert "| Fancy (`fancy`) | **0.5000** | – | – | the recipe's |" in shown


@pytest.mark.parametrize("best", [True, False])
def test_the_page_names_rows_that_do_not_run_with_their_best_rate(toy: Table, tmp_path: Path, best: bool) -> None:
    store = Store(tmp_path / "cells")
    finish(toy, store, {("plain", 0.1): 1.5 if best else 1.0, ("plain", 0.2): 1.25, ("fancy", 0.1): 0.5})
    shown = page.text(toy, page.finished(toy, store), rates.finished(toy, store))
    assert ("Rows with a rate in use that is not their best: `plain`." in shown) is not best


def test_a_rate_that_was_not_tried_yet_is_a_dash(toy: Table, tmp_path: Path) -> None:
    store = Store(tmp_path / "cells")
    shown = page.text(toy, page.finished(toy, store), rates.finished(toy, store))
    assert "| Plain (`plain`) | – | – | – | 0.2 |" in shown


def test_a_table_without_rates_has_no_section_of_them(tmp_path: Path) -> None:
    plain, store = toy_results.table(tmp_path), Store(tmp_path / "cells")
    assert "## Learning rates" not in page.text(plain, page.finished(plain, store), rates.finished(plain, store))


def test_a_trial_belongs_to_its_table(toy: Table, tmp_path: Path) -> None:
    store = Store(tmp_path / "cells")
    finish(toy, store, {("plain", 0.1): 1.5})
    assert [path.name for path in store.strangers("toy", toy.cells())] == ["plain@0.1-0.json"]
    assert store.strangers("toy", [*toy.cells(), *toy.trials().values()]) == []
