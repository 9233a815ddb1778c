"""Reports in tests: runs that write them, and what a page holds."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import train

from flt.api import training
from flt.reports import live

ALGOS = ("hafl", "fl_tac", "sa_fedlora", "c2a")
"""Recipes whose runs have different charts."""
TINY = ("rounds=3", "clients=4", "threads=1")


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Runs in the with block write their reports, as outside the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "live_reports", live.live_reports)
        yield


def tiny_run(folder: Path, algo: str, *arguments: str) -> Path:
    """Trains three rounds of a recipe on four clients, and returns the run's folder."""
    assert train(f"algo={algo}", *TINY, f"root={folder}", *arguments) == 0
    return max((folder / algo).iterdir(), key=lambda path: int(path.name.removeprefix("version_")))


def data_of(page: str) -> dict[str, Any]:
    """The charts of a page, by id."""
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])["charts"]


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), the ids, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open not in ("script", "style") and data.strip():
            self.texts.append(data.strip())

    @property
    def charts(self) -> set[str]:
        return {str(attrs["id"]) for tag, attrs in self.elements if attrs.get("class") == "chart"}
