"""A headless Chromium without a network, and what it finds wrong with a page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SERIOUS = ("serious", "critical")
WIDTHS = (390, 1440)
"""Width of a phone and of a desktop screen, in pixels."""
OVERFLOWING = """() => {
  const wide = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let at = element.parentElement; at && at !== document.body; at = at.parentElement) {
      const clips = /auto|scroll|hidden|clip/.test(getComputedStyle(at).overflowX);
      if (clips && at.getBoundingClientRect().right <= wide + 1) return true;
    }
    return false;
  };
  const names = [...document.querySelectorAll("body *")]
    .filter((element) => element.checkVisibility?.() && !element.closest("svg svg, [hidden]"))
    .filter((element) => getComputedStyle(element).position !== "fixed")
    .filter((element) => element.getBoundingClientRect().right > wide + 1 && !scrolls(element))
    .map((element) => `${element.tagName}.${element.className.baseVal ?? element.className}`);
  const page = document.scrollingElement;
  return page.scrollWidth > wide + 1 ? ["the page", ...names] : [];
}"""
"""Names of the elements that make a page wider than its window; what scrolls inside a box of its own is none."""


def chromium() -> str:
    """Path of Chromium. The test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    return path


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        try:
            yield opened
        finally:
            opened.close()


@contextlib.contextmanager
def page_of(
    opened, path: Path, width: int, scheme: str = "light"
) -> Iterator[tuple[object, list[str]]]:  # playwright is optional
    """Opens a file of this machine. Yields the page, and a list to which its errors are added."""
    context = opened.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        offline=True,
        reduced_motion="reduce",
    )
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "requestfailed", lambda request: errors.append(f"failed: {request.url[:200]}") if _is_lost(request) else None
    )
    page.on("request", lambda request: None if _is_local(request.url) else errors.append(f"network: {request.url}"))
    try:
        page.goto(path.as_uri())
        yield page, errors
    finally:
        context.close()


def violations(page) -> list[str]:  # playwright is optional
    """What axe-core finds on a page that is serious, one line each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # its preloading would request the page's styles, which browsers refuse for files
    found = axe.run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    return [
        f"{each['id']}: {node['html'][:150]} {node.get('failureSummary', '')[:300]}"
        for each in found
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


def undrawn(page) -> list[str]:  # playwright is optional
    """Ids of the charts in which Plotly has drawn nothing."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".chart")]
           .filter((chart) => !chart.querySelector(".main-svg .plot, .main-svg .imagelayer"))
           .map((chart) => chart.id)"""
    )


def repeated(page) -> list[str]:  # playwright is optional
    """Ids of the charts with two equal labels along an axis, such as rounded ones."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".chart")].filter((chart) => [".xtick", ".ytick"].some((kind) => {
           const labels = [...chart.querySelectorAll(`${kind} text`)].map((label) => label.textContent);
           return new Set(labels).size < labels.length;
         })).map((chart) => chart.id)"""
    )


def overflowing(page) -> list[str]:  # playwright is optional
    """What makes a page wider than its window."""
    return page.evaluate(OVERFLOWING)


def _is_lost(request: Any) -> bool:
    """Whether a request has failed for another reason than that the reader has gone to the next page."""
    return request.failure != "net::ERR_ABORTED"


def _is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "about:"))
