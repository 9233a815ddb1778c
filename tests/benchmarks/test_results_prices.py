from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import toy_results
from benchmarks.results import page, prices
from benchmarks.results.cell import Cell, Record
from benchmarks.results.table import PRICES, Table

from flt.core.errors import InputError


def run(seed: int = 0, rounds: int = 3, steps: float = 10, hours: float | None = None) -> Record:
    made = toy_results.record(Cell("toy", "plain", seed, []), [0.5] * rounds)
    more = {"time/simulated_hours": [hours] * rounds} if hours else {}
    return dataclasses.replace(made, history=made.history | {"clients/steps": [steps] * rounds} | more)


@pytest.fixture
def toy(tmp_path: Path) -> Table:
    lines = toy_results.YAML.replace("control: plain", "control: idle\nequal: [rounds, steps]")
    rows = "rows:\n  - {id: idle, label: Idle}\n  - {id: long, label: Long, group: Recipes}"
    return toy_results.table(tmp_path, lines.replace("rows:", rows, 1))


def test_every_price_that_a_table_may_name_is_computed() -> None:
    assert tuple(prices.OF) == PRICES


def test_prices_are_of_the_whole_run_and_equal_within_five_percent() -> None:
    assert prices.equal([run()], [run()]) == ["rounds", "steps", "bytes up", "bytes down"]
    assert prices.equal([run(hours=1.0)], [run(hours=1.04, steps=10.4)])[-1] == "simulated hours"
    assert prices.equal([run(steps=10)], [run(steps=10.6)]) == ["rounds", "bytes up", "bytes down"]
    assert prices.equal([run(rounds=2, steps=15)], [run(rounds=3, steps=10)]) == ["steps"]


def test_only_shared_seeds_count_and_their_mean_decides() -> None:
    few, many = [run(0, steps=8), run(1, steps=12)], [run(0, steps=12), run(1, steps=8), run(2, steps=99)]
    assert "steps" in prices.equal(few, many)
    assert "steps" not in prices.equal(few, [run(0, steps=12)])
    assert prices.equal([run(0)], [run(1)]) == []


def test_a_price_that_a_run_has_not_recorded_is_not_equal() -> None:
    without = dataclasses.replace(run(), history={"round/val_acc": [0.5, 0.5, 0.5]})
    assert prices.equal([without], [run()]) == ["rounds"]


def test_the_page_says_which_price_is_equal_and_names_the_exceptions(toy: Table) -> None:
    records = {"idle": [run(rounds=1)], "plain": [run()], "fancy": [run()], "long": [run(rounds=6)]}
    shown = page.text(toy, records)
    assert "**Equal price under each heading:** rounds and steps, within 5 % on average over the seeds." in shown
    assert "Not equal in rounds and steps: `long`." in shown
    assert "The rows differ in bytes up (3 to 6 MB) and bytes down (6 to 12 MB)." in shown
    assert "idle" not in prices.sentence(toy, records)


def test_pairs_say_what_both_rows_spend(toy: Table) -> None:
    records = {"idle": [], "long": [], "plain": [run(steps=20)], "fancy": [run(rounds=6, steps=10)]}
    assert "| Fancy; Plain |" in page.text(toy, records)
    assert next(line for line in page.text(toy, records).splitlines() if "Fancy; Plain" in line).endswith("| steps |")
    records["fancy"] = [run(rounds=9, steps=10)]
    assert next(line for line in page.text(toy, records).splitlines() if "Fancy; Plain" in line).endswith("| none |")


def test_an_unknown_price_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"toy\.equal=time"):
        toy_results.table(tmp_path, toy_results.YAML + "equal: [time]\n")
