"""Reports as people see them: in a Chromium without a network, on a phone and a desktop, in light and dark."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, browser, overflowing, page_of, undrawn, violations
from commands import QUICK
from reports import written

from flt.cli.main import main

RECIPES = {
    "hafl": ["ranks=[2,4,8]"],
    "fl_tac": ["grouping.k=2"],
    "sa_fedlora": [],
    "c2a": [],
}
"""Recipe -> further settings of its run."""
CELLS = """(id) => [...document.getElementById(id).closest("figure").querySelectorAll("details tr")]
           .map((row) => [...row.children].map((cell) => cell.textContent))"""
"""Cells of the table below a chart."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of four rounds for each recipe."""
    root = tmp_path_factory.mktemp("runs")
    settings = {**QUICK, "rounds": 4, "clients": 4, "root": root}
    with written():
        for recipe, more in RECIPES.items():
            arguments = [f"algo={recipe}", *(f"{key}={value}" for key, value in settings.items()), *more]
            assert main(["train", *arguments]) == 0
    return {recipe: root / recipe / "version_0" for recipe in RECIPES}


@pytest.fixture(scope="module")
def pages(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of each run, and one that compares three of them."""
    compared = tmp_path_factory.mktemp("compared") / "report.html"
    folders = [str(runs[recipe]) for recipe in ("hafl", "sa_fedlora", "c2a")]
    assert main(["report", *folders, f"out={compared}"]) == 0
    return {**{recipe: run / "report.html" for recipe, run in runs.items()}, "comparison": compared}


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.mark.parametrize(("width", "scheme"), [(WIDTHS[0], "dark"), (WIDTHS[1], "light")])
@pytest.mark.parametrize("name", [*RECIPES, "comparison"])
def test_a_report_is_drawn_whole_and_can_be_read_by_everybody(
    name: str, width: int, scheme: str, opened: Any, pages: dict[str, Path]
) -> None:
    with page_of(opened, pages[name], width, scheme) as (page, errors):
        page.wait_for_function(
            "() => [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('.main-svg'))"
        )
        assert page.locator(".chart").count() >= 4
        assert undrawn(page) == []
        assert overflowing(page) == []
        assert violations(page) == []
        assert errors == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tables_have_the_figures_of_metrics_csv(
    recipe: str, opened: Any, pages: dict[str, Path], runs: dict[str, Path]
) -> None:
    with (runs[recipe] / "metrics.csv").open() as file:
        wanted = [float(row["round/val_acc"]) for row in csv.DictReader(file)]
    with page_of(opened, pages[recipe], 1440) as (page, _):
        header, *rows = page.evaluate(CELLS, "chart-score")
        shown = [float(row[header.index("global model")]) for row in rows]
    assert shown == [pytest.approx(value, abs=5e-5) for value in wanted]


def test_the_comparison_has_the_last_figures_of_each_run(
    opened: Any, pages: dict[str, Path], runs: dict[str, Path]
) -> None:
    with page_of(opened, pages["comparison"], 1440) as (page, _):
        text = page.locator("main").inner_text()
    for recipe in ("hafl", "sa_fedlora", "c2a"):
        with (runs[recipe] / "metrics.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        assert f"{float(last['test/acc'] if 'test/acc' in last else last['test/val_acc']):.4f}" in text


def test_the_theme_can_be_switched_by_keyboard_and_is_remembered(opened: Any, pages: dict[str, Path]) -> None:
    with page_of(opened, pages["hafl"], 1440) as (page, errors):
        before = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").focus()
        page.keyboard.press("Enter")
        after = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        page.reload()
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == after != before
        assert errors == []
