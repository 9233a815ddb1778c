"""Trains small runs and writes the screenshots of their reports to docs/report/.

    python -m benchmarks.pages.report_screenshots

Needs the extra ``browser`` and Chromium.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import flt
from flt.api import train
from flt.run.resume import configure

OUT = Path(__file__).parents[2] / "docs" / "report"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SHOTS = {
    "light": ("fl_tac", 1440, 1500, "light", 0),
    "dark": ("hafl", 1440, 1500, "dark", 1180),
    "phone": ("hafl", 390, 1200, "light", 0),
    "compare": ("comparison", 1440, 1500, "light", 0),
}
"""Name of the picture -> page, width and height of the window, theme, and how far the page is scrolled."""
DRAWN = "[...document.querySelectorAll('.chart')].every((chart) => chart.classList.contains('js-plotly-plot'))"


def main() -> None:
    """Trains a run of each of three recipes, and takes the pictures."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = {algo: _run(algo, folder) for algo in ("fl_tac", "hafl", "sa_fedlora")}
        pages = {algo: flt.report(run, Path(folder, f"{algo}.html")) for algo, run in runs.items()}
        pages["comparison"] = flt.report(list(runs.values()), Path(folder, "comparison.html"))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
            for name, (page, *window) in SHOTS.items():
                _shoot(browser, pages[page], OUT / f"{name}.png", *window)


def _run(algo: str, folder: str) -> Path:
    keys = (f"algo={algo}", "rounds=12", "clients=12", "local.steps=5", f"root={folder}", "report=false")
    return train(configure(keys)).path


def _shoot(browser: Browser, page: Path, out: Path, width: int, height: int, theme: str, down: int) -> None:
    scheme = "dark" if theme == "dark" else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_function(DRAWN)
    tab.evaluate(f"scrollTo(0, {down})")
    tab.wait_for_timeout(500)
    shown = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    shown.quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)  # few colours: a third of the size
    context.close()


if __name__ == "__main__":
    main()
