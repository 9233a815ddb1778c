"""Reports as people see them: in a Chromium without a network, on a phone and a desktop, in light and dark."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, browser, overflowing, page_of, repeated, undrawn, violations
from reports import ALGOS

import flt
from flt.reports.page import RELOAD, one

SCHEMES = {390: "light", 1440: "dark"}
"""Width -> theme. A theme has the same colours at all widths, and a width the same layout in all themes."""
COMPARED = ("hafl", "sa_fedlora", "c2a")
CELLS = """(id) => [...document.getElementById(id).closest("figure").querySelectorAll("details tr")]
           .map((row) => [...row.children].map((cell) => cell.textContent))"""
"""Cells of the table below a chart."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of each run, and one that compares three of them."""
    folder = tmp_path_factory.mktemp("pages")
    compared = flt.report([runs[algo] for algo in COMPARED], folder / "comparison.html")
    return {**{algo: flt.report(runs[algo], folder / f"{algo}.html") for algo in ALGOS}, "comparison": compared}


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*ALGOS, "comparison"])
def test_a_report_is_drawn_whole_and_can_be_read_by_everybody(
    name: str, width: int, opened: Any, pages: dict[str, Path]
) -> None:
    with page_of(opened, pages[name], width, SCHEMES[width]) as (page, errors):
        page.wait_for_function(
            "() => [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('.main-svg'))"
        )
        assert page.evaluate("() => document.documentElement.dataset.theme") == SCHEMES[width]
        assert page.locator(".chart").count() >= 4
        assert undrawn(page) == []
        assert repeated(page) == []
        assert overflowing(page) == []
        assert violations(page) == []
        assert errors == []


@pytest.mark.parametrize("recipe", ALGOS)
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
    for recipe in COMPARED:
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


def test_the_page_of_a_running_run_reloads_itself_until_the_run_has_ended(
    opened: Any, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs["fl_tac"], tmp_path / "fl_tac" / "version_0"))
    header, *rounds = (run / "metrics.csv").read_text().splitlines()
    path = tmp_path / "report.html"

    def write(done: int, running: bool = True) -> None:
        (run / "metrics.csv").write_text("\n".join([header, *rounds[:done]]) + "\n")
        path.write_text(one(run, running))

    write(1)
    with page_of(opened, path, 1440) as (page, errors):
        page.context.clock.install()
        page.reload()
        status = page.locator(".status strong").locator("..")
        assert "Running, round 1 of 3." in status.inner_text()
        write(2)
        with page.expect_navigation():
            page.clock.fast_forward(1000 * RELOAD)
        assert "Running, round 2 of 3." in status.inner_text()
        page.locator("#pause").check()
        write(3)
        page.clock.fast_forward(1000 * 60 * 6)
        assert "Running, round 2 of 3. No news for 6 minutes: the run may have ended." in status.inner_text()
        write(3, running=False)
        page.locator("#pause").uncheck()
        with page.expect_navigation():
            page.clock.fast_forward(1000 * RELOAD)
        assert page.locator(".status").count() == 0
        assert page.locator(".figures").inner_text().count("of 3 planned") == 1
        page.clock.fast_forward(1000 * 60)
        assert errors == []
