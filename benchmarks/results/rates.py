"""The section of a page on the learning rates that its table has tried."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.results.cell import Record, Store
from benchmarks.results.markdown import grid
from benchmarks.results.table import Table

LOSS = "round/val_loss"
Tried = Mapping[tuple[str, float], Record]
"""Id of a row and a learning rate -> its run."""


def finished(table: Table, store: Store) -> dict[tuple[str, float], Record]:
    """The trials that have run."""
    read = {key: store.read(cell) for key, cell in table.trials().items()}
    return {key: record for key, record in read.items() if record is not None}


def loss(record: Record) -> float | None:
    """The loss on the validation sample after the last round; None where it is no number, as of a run that diverged."""
    values = record.history.get(LOSS, [])
    return values[-1] if values else None


def section(table: Table, tried: Tried) -> list[str]:
    """The heading, what the figures are, and a line for each row; empty where nothing was tried."""
    if table.rates is None or not tried:
        return []
    said = (
        "The loss on the validation sample after the last round, with the first seed alone; bold: the least of a row. "
        "A row runs with the rate under *in use* for all of its seeds. The figures of the test split play no part."
    )
    heads = ["", *(f"{rate:g}" for rate in table.rates.grid), "in use"]
    return ["## Learning rates", said, grid(heads, [_line(table, id, tried) for id in table.rates.rows])]


def _line(table: Table, id: str, tried: Tried) -> list[str]:
    assert table.rates is not None
    row = table.row(id)
    losses = [loss(tried[id, rate]) if (id, rate) in tried else None for rate in table.rates.grid]
    least = min((value for value in losses if value is not None), default=None)
    used = table.rate_of(row)
    shown = [_shown(value, least=value == least) for value in losses]
    return [row.label, *shown, "the recipe's" if used is None else f"{used:g}"]


def _shown(value: float | None, least: bool) -> str:
    if value is None:
        return "–"
    return f"**{value:.4f}**" if least else f"{value:.4f}"
