"""What a table is: the types of benchmarks/results/tables/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from benchmarks.results.cell import Cell

from flt.core.errors import InputError
from flt.core.typed import typed

PRICES = ("rounds", "steps", "bytes up", "bytes down", "simulated hours")
REDUCERS = ("test", "last", "best", "mean", "total", "rise", "count", "rounds_to_target", "bytes_to_target")
KINDS = ("curves", "task_map")
NOTES = "notes.md"
RATE = "local.lr"
"""The setting that :class:`Rates` varies."""


@dataclasses.dataclass
class Row:
    """One line of the table: a configuration that is run with several seeds.

    Attributes:
        id: What cells, pairs and plots call it.
        label: What the page calls it.
        overrides: As for ``flt train``; they win over the table's common ones.
        group: Heading that the row stands under.
        seeds: None: the table's.
        target: None: the table's.
    """

    id: str
    label: str
    overrides: list[str] = dataclasses.field(default_factory=list)
    group: str = ""
    seeds: list[int] | None = None
    target: float | None = None


@dataclasses.dataclass
class Column:
    """One figure of each run.

    Attributes:
        label: What the page calls it.
        reduce: How the rounds become one figure, one of :data:`REDUCERS`.
        key: Metric, such as ``round/val_acc``, or several joined by ``+``; not needed by ``*_to_target``.
        first: First round of a ``mean`` or ``best``.
        last: Last round of it; None: the run's.
        scale: What the figure is multiplied by.
        format: Python's format of the mean and the deviation.
        better: higher or lower, of which the best mean is printed bold; None: neither is.
        paired: Whether the paired differences have it.
        margin: Largest difference that counts as none: the paired differences say which rows are equivalent within it.
    """

    label: str
    reduce: str
    key: str = ""
    first: int = 1
    last: int | None = None
    scale: float = 1.0
    format: str = ".3f"
    better: str | None = None
    paired: bool = False
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.reduce not in REDUCERS:
            raise InputError.of("columns.reduce", self.reduce, REDUCERS)
        if self.better not in (None, "higher", "lower"):
            raise InputError.of("columns.better", self.better, "higher, lower or null")
        if self.margin is not None and not self.margin > 0:
            raise InputError.of("columns.margin", self.margin, "a number above zero, or null")


@dataclasses.dataclass
class Rates:
    """Learning rates that are tried before the cells run: ``local.lr`` of some rows, on one grid, with the first seed.

    Attributes:
        grid: The rates.
        rows: Ids.
    """

    grid: list[float]
    rows: list[str]

    def __post_init__(self) -> None:
        for rate in self.grid:
            if not rate > 0:
                raise InputError.of("rates.grid", rate, "rates above zero")


@dataclasses.dataclass
class Plot:
    """One picture: a line per row, the mean over the seeds; with few rows their range behind it. Or a point per row.

    Attributes:
        file: ``<table>-<file>.png`` is written.
        y: Metric, as in a column; with ``ends`` one of the test's, such as ``test/acc``.
        rows: Ids.
        title: Above it.
        label: Of the y axis; empty: the metric.
        x: round; bytes: all that has crossed, up and down, in MB; or hours: those of a fleet's simulated clock.
        styles: Of the rows' lines, as matplotlib abbreviates them, such as ``C0--``; empty: a colour for each.
        ends: Only where runs end: a point at the mean over the seeds, and the deviation as a bar.
        kind: ``curves``, or ``task_map``: the clusters at the end of one run, the first of the first row that has any,
            along two principal components, and the cosines of their changes. ``y`` isn't read.
    """

    file: str
    y: str
    rows: list[str]
    title: str = ""
    label: str = ""
    x: str = "round"
    styles: list[str] = dataclasses.field(default_factory=list)
    ends: bool = False
    kind: str = "curves"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError.of("plots.kind", self.kind, KINDS)
        if self.x not in ("round", "bytes", "hours"):
            raise InputError.of("plots.x", self.x, "round, bytes, hours")
        if self.styles and len(self.styles) != len(self.rows):
            raise InputError.of("plots.styles", self.styles, f"{len(self.rows)} styles, one for each row")


@dataclasses.dataclass
class Table:
    """A table, as its YAML has it.

    Attributes:
        name: The file's; the YAML doesn't say it.
        title: The page's heading.
        text: What is compared, and how.
        control: The row without an adapter, to which every gain is to be compared.
        common: Overrides of all rows.
        seeds: Of all rows.
        rows: The lines, in order.
        columns: The figures, in order.
        target: Of :attr:`target_key`, for ``rounds_to_target`` and ``bytes_to_target``.
        target_key: Metric that is to reach the target.
        pairs: ``[row, row, label]``: the first minus the second, on the same seeds; the label may be left out.
        plots: The pictures.
        rates: The learning rates that were tried on the validation sample; None: the text says which.
        equal: The prices that the rows are meant to have in common, such as rounds, steps, bytes up; the page names the
            rows that don't, and how far the other prices reach.
        notes: What was found; ``tables/<name>.notes.md``, where there is one, comes after it.
    """

    name: str
    title: str
    text: str
    seeds: list[int]
    rows: list[Row]
    columns: list[Column]
    control: str
    common: list[str] = dataclasses.field(default_factory=list)
    target: float | None = None
    target_key: str = "round/val_acc"
    pairs: list[list[str]] = dataclasses.field(default_factory=list)
    plots: list[Plot] = dataclasses.field(default_factory=list)
    equal: list[str] = dataclasses.field(default_factory=list)
    rates: Rates | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        ids = [row.id for row in self.rows]
        for id in ids:
            if ids.count(id) > 1:
                raise InputError.of(f"{self.name}.rows", id, "an id of its own for each row")
        for override in [*self.common, *(override for row in self.rows for override in row.overrides)]:
            _check_override(override)
        for price in self.equal:
            if price not in PRICES:
                raise InputError.of(f"{self.name}.equal", price, PRICES)
        for pair in self.pairs:
            if len(pair) not in (2, 3):
                raise InputError.of(f"{self.name}.pairs", pair, "[row, row, label]")
        named = [*(id for pair in self.pairs for id in pair[:2]), *(id for plot in self.plots for id in plot.rows)]
        self.picked([*named, self.control, *(self.rates.rows if self.rates else [])])

    def picked(self, ids: list[str]) -> list[Row]:
        """The rows of these ids, in the table's order.

        Raises:
            InputError: There is no such row.
        """
        known = [row.id for row in self.rows]
        for id in ids:
            if id not in known:
                raise InputError.of(f"{self.name}.rows", id, known, "there is no such row")
        return [row for row in self.rows if row.id in ids]

    def row(self, id: str) -> Row:
        """The row of an id."""
        return self.picked([id])[0]

    def cells(self, rows: list[str] | None = None, seeds: list[int] | None = None) -> list[Cell]:
        """All cells, or those of some rows and seeds; seed by seed, so that a whole table comes first.

        Raises:
            InputError: There is no such row.
        """
        chosen = self.rows if rows is None else self.picked(rows)
        return [
            Cell(self.name, row.id, seed, self.overrides(row))
            for seed in self._seeds()
            for row in chosen
            if seed in self.seeds_of(row) and (seeds is None or seed in seeds)
        ]

    def trials(self, rows: list[str] | None = None) -> dict[tuple[str, float], Cell]:
        """Id of a row and a learning rate -> the cell that tries it; for a row's own rate this is the cell of the row.

        Raises:
            InputError: There is no such row.
        """
        if self.rates is None:
            return {}
        chosen = [row for row in self.picked(self.rates.rows) if rows is None or row in self.picked(rows)]
        return {(row.id, rate): self._trial(row, rate) for row in chosen for rate in self.rates.grid}

    def _trial(self, row: Row, rate: float) -> Cell:
        overrides, seed = self.overrides(row), self.seeds_of(row)[0]
        if self.rate_of(row) == rate:
            return Cell(self.name, row.id, seed, overrides)
        tried = [override for override in overrides if not override.startswith(f"{RATE}=")]
        return Cell(self.name, f"{row.id}@{rate:g}", seed, [*tried, f"{RATE}={rate:g}"])

    def rate_of(self, row: Row) -> float | None:
        """The learning rate that a row's overrides name; None where they don't."""
        named = [override.partition("=")[2] for override in self.overrides(row) if override.startswith(f"{RATE}=")]
        return float(named[-1]) if named else None

    def seeds_of(self, row: Row) -> list[int]:
        """The seeds that a row is run with."""
        return self.seeds if row.seeds is None else row.seeds

    def overrides(self, row: Row) -> list[str]:
        """The common overrides, in which those of the row take the place of the same key."""
        own = {override.partition("=")[0] for override in row.overrides}
        return [o for o in self.common if o.partition("=")[0] not in own] + row.overrides

    def _seeds(self) -> Iterator[int]:
        yield from dict.fromkeys(seed for row in self.rows for seed in self.seeds_of(row))


def _check_override(override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or key in ("seed", "root", "threads", "resume"):
        raise InputError.of("overrides", override, "key=value, other than seed, root, threads, resume")
    if value.startswith(("/", "~")):
        raise InputError.of("overrides", override, "names and relative paths: others shall run it too")


def load(path: Path) -> Table:
    """Reads a table.

    Raises:
        InputError: The file isn't a table; the message is one line.
    """
    try:
        found: Any = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError.of(path.name, "?", "YAML", " ".join(str(error).split())) from None
    if not isinstance(found, dict) or "name" in found:
        raise InputError.of(path.name, "?", "the keys of a table, without name, which is the file's")
    needed = [f.name for f in dataclasses.fields(Table) if f.default is f.default_factory is dataclasses.MISSING]
    for key in needed[1:]:
        if key not in found:
            raise InputError.of(path.name, key, needed[1:], "the key is missing")
    table: Table = typed(Table, {**found, "name": path.stem}, path.stem)
    notes = path.with_name(f"{path.stem}.{NOTES}")
    return dataclasses.replace(table, notes=table.notes + (notes.read_text() if notes.is_file() else ""))


def names(folder: Path) -> list[str]:
    """The tables of a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
