"""Output area of a notebook in which the progress of a run is redrawn."""

from __future__ import annotations

import importlib.util
import io
import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

SHOWN = 12
"""Number of the newest lines that stay visible."""
PAUSE = 0.5
"""Shortest time in seconds between two drawings, because each one is sent to the browser."""
_PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


def is_notebook(console: Console) -> bool:
    """Returns whether the console writes to a notebook that can redraw an output."""
    return console.is_jupyter and importlib.util.find_spec("IPython") is not None


class NotebookLive:
    """Shows a first line, the newest of the lines that follow, and a changing part below them, in one output area.

    It takes the place of rich's ``Live``, which needs the package ipywidgets in a notebook.

    Args:
        width: Number of characters of a line.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[str] = []
        self._changing: RenderableType = ""
        self._handle: Any = None
        self._drawn_at = 0.0

    def start(self) -> None:
        """Creates the output area."""
        from IPython.display import HTML, display  # installed wherever there is a notebook

        self._handle = display(HTML(self._html()), display_id=True)

    def add(self, line: str) -> None:
        """Adds a line."""
        self.lines.append(line)
        self._draw()

    def update(self, changing: RenderableType) -> None:
        """Replaces the changing part. It is drawn later if the area has just been drawn."""
        self._changing = changing
        if time.perf_counter() - self._drawn_at > PAUSE:
            self._draw()

    def stop(self) -> None:
        """Leaves the lines alone."""
        self._changing = ""
        self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML

        self._drawn_at = time.perf_counter()
        if self._handle is not None:
            self._handle.update(HTML(self._html()))

    def _html(self) -> str:
        left_out = len(self.lines) - 1 - SHOWN
        shown = self.lines if left_out <= 0 else [self.lines[0], f"({left_out} lines)", *self.lines[-SHOWN:]]
        page = Console(file=io.StringIO(), record=True, width=self.width, force_jupyter=False)
        page.print(Group(Text("\n".join(shown), no_wrap=True), self._changing))
        return page.export_html(code_format=_PRE, inline_styles=True)
