"""The docs site as people see it: opened as files in a Chromium without a network, on a phone and a desktop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, browser, overflowing, page_of, violations

PAGES = (
    "index", "guides/csv_to_predictions", "results_of_a_run", "concepts", "architecture", "papers/hafl",
    "troubleshooting", "reference/commands", "reference/keys", "reference/parts/rule", "reference/api", "results/c2a",
)  # fmt: skip
"""A page of each kind: prose, code, tables, pictures, formulas, error lines, and what is made from the code."""
SCHEMES = {"light": "default", "dark": "slate"}
AXE = {(390, "light"), (1440, "dark")}
"""Where axe-core runs: it sees each width and each colour once, and takes longest."""
SCHEME = "() => document.body.getAttribute('data-md-color-scheme')"
UNLOADED = """() => [...document.images].filter((image) => !image.complete || !image.naturalWidth)
                                       .map((image) => image.src)"""
"""Addresses of the pictures that can't be shown."""
FLAT = """() => [...document.querySelectorAll("math")].filter((math) => math.getBoundingClientRect().height < 5)
                                                     .length"""
"""Number of formulas that aren't drawn."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_can_be_read_by_everybody(name: str, opened: Any, site: Path) -> None:
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        with page_of(opened, site / f"{name}.html", width, scheme) as (page, errors):
            assert page.evaluate(SCHEME) == SCHEMES[scheme]
            assert page.locator("h1").count() == 1
            assert page.evaluate(UNLOADED) == []
            assert page.evaluate(FLAT) == 0
            assert overflowing(page) == []
            if (width, scheme) in AXE:
                assert violations(page) == []
            assert errors == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_search_finds_a_word_in_a_page_that_is_opened_as_a_file(width: int, opened: Any, site: Path) -> None:
    with page_of(opened, site / "index.html", width) as (page, errors):
        page.keyboard.press("/")
        page.keyboard.type("hypernetwork")
        found = page.locator("a.md-search-result__link").filter(has_text="C2A").first
        found.wait_for(timeout=10_000)
        found.click()
        page.wait_for_url("**/*.html*h=*")
        assert "hypernetwork" in page.locator("article").inner_text().lower()
        assert errors == []


def test_a_reader_comes_from_the_start_to_every_section_and_to_a_key(opened: Any, site: Path) -> None:
    with page_of(opened, site / "index.html", 1440) as (page, errors):
        tabs = page.locator(".md-tabs__link")
        for i in range(tabs.count()):
            tabs.nth(i).click()
            assert page.locator("article h1").is_visible()
        page.goto((site / "reference" / "keys.html").as_uri() + "#local-lr")
        assert page.locator("#local-lr").is_visible()
        assert errors == []


def test_the_theme_can_be_switched(opened: Any, site: Path) -> None:
    with page_of(opened, site / "index.html", 1440) as (page, errors):
        page.get_by_title("Switch to dark mode").click()
        assert page.evaluate(SCHEME) == SCHEMES["dark"]
        assert errors == []
