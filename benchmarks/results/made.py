"""How a page was made, and the list of all pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.results.cell import Record, Store, write
from benchmarks.results.table import Table
from benchmarks.results.worker import SMALL_LM

from flt.core.formatting import duration

BY_HAND = {SMALL_LM: 'model="$(make -s small-lm)"'}
"""Override of a table -> what says the same on a command line, where it means nothing there."""
BEGIN, END = "<!-- tables: written by make results -->", "<!-- end of the tables -->"


def made(table: Table, records: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """What is needed to make the page again: the command, the settings, and what it ran on."""
    found = [record for runs in records.values() for record in runs]
    yield "## How it was made"
    yield f"`make results TABLE={table.name}` runs the cells that are missing and writes this page. One cell by hand:"
    common = (BY_HAND.get(override, override) for override in table.common)
    yield _wrapped(["flt train", *common, "<the row's>", "seed=0", "threads=1"])
    rows = [f"| `{row.id}` | {row.label} | {' '.join(f'`{o}`' for o in row.overrides)} |" for row in table.rows]
    yield "\n".join(["| row | | overrides |", "|---|---|---|", *rows])
    seconds = sum(record.seconds for record in found)
    ran = f"{len(found)} cells took {duration(seconds)}, added up."
    threads = _several(f"{record.threads} thread{'s' * (record.threads > 1)}" for record in found)
    hardware = _several(record.hardware for record in found)
    versions = _several(", ".join(f"{name} {v}" for name, v in record.versions.items()) for record in found)
    yield f"{ran} Hardware: {hardware}; {threads} for each cell. Versions: {versions}."


def _several(values: Iterable[str]) -> str:
    """All different ones: cells may have been run at different times and places."""
    return "; or ".join(dict.fromkeys(values))


def _wrapped(words: Sequence[str], width: int = 110) -> str:
    """A command as a block of code, over several lines."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "```\n" + " \\\n".join(lines) + "\n```"


def index(tables: Sequence[Table], store: Store, folder: Path) -> list[Path]:
    """Writes the list of the tables into the folder's README.md, whose other text stays.

    Returns:
        What was written.
    """
    path, lines = folder / "README.md", [BEGIN]
    for table in tables:
        cells = table.cells()
        done = sum(store.read(cell) is not None for cell in cells)
        if done:
            lines.append(
                f"- [{table.title}]({table.name}.md), `make results TABLE={table.name}`: {_done(done, len(cells))}"
            )
    if len(lines) == 1:
        return []
    block = "\n".join([*lines, END])
    before = path.read_text() if path.is_file() else f"# Results\n\n{BEGIN}\n{END}\n"
    if BEGIN not in before:
        before = f"{BEGIN}\n{END}\n\n{before}"
    after = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, before, flags=re.DOTALL)
    return [path] if write(path, after.encode()) else []


def _done(done: int, cells: int) -> str:
    return f"{cells} cells" if done == cells else f"{done} of {cells} cells"
