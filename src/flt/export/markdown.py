"""Markdown of texts that may hold anything, such as names of classes: nothing in them is read as Markdown or HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from flt.core.formatting import printable

_RISKY = re.compile(r"[\\`*\[\]~|$#]|://|(?<=w)\.|(?<!\w)_|_(?!\w)|^[-+.!]|^\d+(?=[.)](?:\s|$))")
"""Pattern of what could begin or end emphasis, code, a link, a formula, a list or a heading."""


def escaped(text: str, code: bool = False) -> str:
    r"""Returns a text on one line in which nothing has a meaning for Markdown or HTML.

    Args:
        text: The text.
        code: Whether the text is put between backticks, where only backticks and lines have a meaning.

    Example:
        >>> print(escaped("a *bold* <b> | `x`"))
        a \*bold\* &lt;b&gt; \| \`x\`
    """
    plain = " ".join(printable(text, "\n").split())
    if code:
        return plain.replace("`", "'").replace("|", "\\|")
    return _RISKY.sub(_mark, html.escape(plain, quote=False))


def _mark(found: re.Match[str]) -> str:
    text = found[0]
    if text == "://":
        return "&#58;//"
    return f"<!-- -->{text}" if text.isdigit() else f"\\{text}"


def fenced(text: str, language: str) -> str:
    """Returns a block of code. Its fence is longer than any row of backticks in the text."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", printable(text, "\n"), fence])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
