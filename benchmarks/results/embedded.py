"""Tables inside of other pages: between two marks that name the table, as its own page has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import page
from benchmarks.results.cell import Store, write
from benchmarks.results.table import Table

MARKED = re.compile(r"(<!-- made by make results TABLE=(\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def publish(tables: Sequence[Table], store: Store, folder: Path) -> list[Path]:
    """Writes tables anew into the pages of a folder that have marks for them.

    Args:
        tables: Those that may be written; marks of others are left alone.
        store: The finished cells.
        folder: Of the pages.

    Returns:
        What was written; nothing where the files say the same already.
    """
    known = {table.name: table for table in tables}

    def filled(mark: re.Match[str]) -> str:
        table = known.get(mark[2])
        if table is None:
            return mark[0]
        return "\n\n".join([mark[1].rstrip(), *page.main_tables(table, page.finished(table, store)), mark[3]])

    written = []
    for path in sorted(folder.glob("*.md")):
        before = path.read_text()
        after = MARKED.sub(filled, before)
        if after != before and write(path, after.encode()):
            written.append(path)
    return written
