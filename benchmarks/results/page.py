"""The page of a table: docs/results/<table>.md and its pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.results import plot, rates
from benchmarks.results.cell import Record, Store, write
from benchmarks.results.made import made
from benchmarks.results.markdown import grid
from benchmarks.results.prices import equal, sentence
from benchmarks.results.reduce import CROSSED, Paired, Spread, curve, figure, paired
from benchmarks.results.statistics import LEVEL, equivalence
from benchmarks.results.table import Column, Row, Table

NONE = "–"
Records = Mapping[str, Sequence[Record]]
"""Row id -> its runs."""


def publish(table: Table, store: Store, folder: Path) -> list[Path]:
    """Writes the page and the pictures of a table that has a finished cell.

    Returns:
        What was written; nothing where the files say the same already.
    """
    records, tried = finished(table, store), rates.finished(table, store)
    if not any(records.values()):
        return []
    pictures = [path for shown in table.plots for path in plot.publish(table, shown, records, folder)]
    path = folder / f"{table.name}.md"
    return ([path] if write(path, text(table, records, tried).encode()) else []) + pictures


def finished(table: Table, store: Store) -> dict[str, list[Record]]:
    """Row id -> its finished runs, in the order of the seeds."""
    found: dict[str, list[Record]] = {row.id: [] for row in table.rows}
    for cell in sorted(table.cells(), key=lambda cell: cell.seed):
        if record := store.read(cell):
            found[cell.row].append(record)
    return found


def text(table: Table, records: Records, tried: rates.Tried | None = None) -> str:
    """The whole page as Markdown."""
    parts = [
        f"# {table.title}",
        table.text.strip(),
        *missing(table, records),
        "## Results",
        *([sentence(table, records)] if table.equal else []),
        *main_tables(table, records),
    ]
    curves = [shown for shown in table.plots if shown.kind == "curves"]
    drawn = [(shown, lines) for shown in curves if (lines := plot.lines(table, shown, records))]
    parts += [legend(table, any(plot.banded(lines) for shown, lines in drawn if not shown.ends))]
    parts += differences(table, records) if table.pairs else []
    parts += [f"![{shown.title or shown.y}]({plot.file_of(table, shown)})" for shown, _ in drawn]
    maps = [shown for shown in table.plots if plot.task_map(shown, records)]
    parts += [f"![{shown.title or 'task map'}]({plot.file_of(table, shown)})" for shown in maps]
    parts += [table.notes.strip()] if table.notes.strip() else []
    parts += rates.section(table, tried or {})
    return "\n\n".join([*parts, *made(table, records)]) + "\n"


def missing(table: Table, records: Records) -> Iterator[str]:
    """Which cells the page is without."""
    there = {(id, record.seed) for id, found in records.items() for record in found}
    lacking = {row.id: [seed for seed in table.seeds_of(row) if (row.id, seed) not in there] for row in table.rows}
    count = sum(map(len, lacking.values()))
    if count:
        listed = "; ".join(_lacking(table.row(id), seeds, table) for id, seeds in lacking.items() if seeds)
        yield f"**{count} of {len(table.cells())} cells are missing:** {listed}."


def _lacking(row: Row, seeds: Sequence[int], table: Table) -> str:
    some = len(seeds) < len(table.seeds_of(row))
    return f"`{row.id}`" + (f" with seed {', '.join(map(str, seeds))}" if some else "")


def main_tables(table: Table, records: Records) -> Iterator[str]:
    """One table for each group of rows; rows without a finished run are left out."""
    there = [row for row in table.rows if records[row.id]]
    for group, rows in itertools.groupby(there, key=lambda row: row.group):
        if group:
            yield f"### {group}"
        yield _group(table, list(rows), records)


def _group(table: Table, rows: Sequence[Row], records: Records) -> str:
    columns = []
    for column in table.columns:
        spreads = [spread(table, row, column, records[row.id]) for row in rows]
        best = _best(spreads, column)
        shown = [
            _shown(found, column, limit(table, row, column, records[row.id]))
            for row, found in zip(rows, spreads, strict=True)
        ]
        columns.append([f"**{said}**" if n in best else said for n, said in enumerate(shown)])
    arrows = {"higher": " ↑", "lower": " ↓", None: ""}
    heads = ["", *(column.label + arrows[column.better] for column in table.columns)]
    names = [row.label + _seeds_there(table, row, records[row.id]) for row in rows]
    return grid(heads, list(zip(names, *columns, strict=True)))


def spread(table: Table, row: Row, column: Column, records: Sequence[Record]) -> Spread | None:
    """A row's figures of all finished seeds in a column; None where a run has none."""
    found = by_seed(table, row, column, records)
    return Spread(tuple(found.values())) if found and len(found) == len(records) else None


def by_seed(table: Table, row: Row, column: Column, records: Sequence[Record]) -> dict[int, float]:
    """Seed -> figure of a row in a column; infinite where the target isn't reached."""
    target = table.target if row.target is None else row.target
    figures = {record.seed: figure(record, column, target, table.target_key) for record in records}
    return {seed: value for seed, value in figures.items() if value is not None}


def limit(table: Table, row: Row, column: Column, records: Sequence[Record]) -> float:
    """What a target that wasn't reached is beyond: the rounds, or the bytes, of the shortest run without it."""
    short = [record for record in records if math.isinf(by_seed(table, row, column, [record]).get(record.seed, 0.0))]
    curves = [curve(record, table.target_key if column.reduce == "rounds_to_target" else CROSSED) for record in short]
    ends = [len(c) if column.reduce == "rounds_to_target" else (c[-1] or 0.0) * column.scale for c in curves if c]
    return float(min(ends, default=math.inf))


def _best(spreads: Sequence[Spread | None], column: Column) -> set[int]:
    """The places of the best mean as it is printed; none where nothing is better or there is nothing to compare."""
    known = {n: found.mean for n, found in enumerate(spreads) if found is not None and math.isfinite(found.mean)}
    if column.better is None or len(known) < 2:
        return set()
    best = (max if column.better == "higher" else min)(known.values())
    return {n for n, mean in known.items() if f"{mean:{column.format}}" == f"{best:{column.format}}"}


def _shown(found: Spread | None, column: Column, beyond: float) -> str:
    if found is None:
        return NONE
    if math.isinf(found.mean):
        reached = f" ({len(found.finite)} of {len(found.values)} reach it)" if found.finite else ""
        return f"> {beyond:{'.0f' if column.reduce == 'rounds_to_target' else column.format}}{reached}"
    deviation = "" if found.deviation is None else f" ± {found.deviation:{column.format}}"
    return f"{found.mean:{column.format}}{deviation}"


def _seeds_there(table: Table, row: Row, records: Sequence[Record]) -> str:
    count = len(table.seeds_of(row))
    if len(records) < count:
        return f" ({len(records)} of {count} seeds)"
    return "" if table.seeds_of(row) == table.seeds else f" ({count} seed{'s' * (count > 1)})"


def legend(table: Table, banded: bool) -> str:
    """What the figures are, and what the bands of the pictures, where they have any."""
    seeds = ", ".join(map(str, table.seeds))
    said = f"Mean ± sample standard deviation over the seeds {seeds}; bold: the best mean under its heading."
    if any(table.seeds_of(row) != table.seeds for row in table.rows):
        said += " Rows with other seeds say how many they have; a paired difference has the seeds of both rows."
    if banded:
        said += " A band in a picture reaches from the least to the greatest of the seeds."
    if any(column.reduce.endswith("_to_target") for column in table.columns):
        own = {row.group: row.target for row in table.rows if row.target is not None}
        others = "".join(f", {target} under *{group}*" if group else f", {target}" for group, target in own.items())
        said += f" The target is a `{table.target_key}` of {table.target}{others}."
    return said


def differences(table: Table, records: Records) -> list[str]:
    """The paired differences, with their heading."""
    columns = [column for column in table.columns if column.paired]
    there = [pair for pair in table.pairs if all(records[id] for id in pair[:2])]
    lines = [
        [_pair_label(table, pair), *_pair(table, pair, columns, records), _prices(pair, records)] for pair in there
    ]
    about = (
        "First minus second: mean ± sample standard deviation of the differences, their 95 % interval by Student's t "
        "(not corrected for the number of comparisons; bold where it leaves out zero), and on how many of the seeds "
        "the difference has the sign of the mean. *Equal price* is what both rows spend alike."
    )
    if margins := [f"{column.margin:{column.format}} in {column.label}" for column in columns if column.margin]:
        about += f" ≈: equivalent by two one-sided tests at {LEVEL * 100:.0f} %, within {', '.join(margins)}."
    return [
        "## Paired differences on the same seeds",
        about,
        grid(["", *(column.label for column in columns), "equal price"], lines),
    ]


def _prices(pair: Sequence[str], records: Records) -> str:
    return ", ".join(equal(records[pair[0]], records[pair[1]])) or "none"


def _pair_label(table: Table, pair: Sequence[str]) -> str:
    return pair[2] if len(pair) == 3 else f"{table.row(pair[0]).label}; {table.row(pair[1]).label}"


def _pair(table: Table, pair: Sequence[str], columns: Sequence[Column], records: Records) -> Iterator[str]:
    first, second = (table.row(id) for id in pair[:2])
    for column in columns:
        found = paired(
            by_seed(table, first, column, records[first.id]), by_seed(table, second, column, records[second.id])
        )
        yield NONE if found is None else _paired_shown(found, column)


def _paired_shown(found: Paired, column: Column) -> str:
    signed = f"+z{column.format}"  # z: no minus before a zero
    said, interval = f"{found.mean:{signed}}", found.interval()
    count = f"{found.agreeing}/{len(found.differences)}"
    if interval is None:
        return f"{said}, {count}"
    low, high = interval
    said = f"**{said}**" if low > 0 or high < 0 else said
    p = equivalence(found.differences, column.margin) if column.margin else None
    level = " ≈" if p is not None and p < LEVEL else ""
    return f"{said} ± {found.deviation:{column.format}} [{low:{signed}}, {high:{signed}}], {count}{level}"
