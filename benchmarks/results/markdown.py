"""Parts of a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def grid(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, whose first columns stand left and the others right."""
    rule = [*["---"] * left, *["---:"] * (len(heads) - left)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (heads, rule, *lines)
    )
