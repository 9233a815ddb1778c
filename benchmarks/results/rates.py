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
    """The heading, what the figures are, and a line for each row; empty where a table has no rates to try."""
    if table.rates is None:
        return []
    said = (
        "The loss on the validation sample after the last round, with the first seed alone; bold: the least of a row. "
        "A row runs with the rate under *in use* for all of its seeds. The figures of the test split play no part."
    )
    if behind := [id for id in table.rates.rows if _is_behind(table, id, tried)]:
        said += f" Rows with a rate in use that is not their best: {', '.join(f'`{id}`' for id in behind)}."
    heads = ["", *(f"{rate:g}" for rate in table.rates.grid), "in use"]
    return ["## Learning rates", said, grid(heads, [_line(table, id, tried) for id in table.rates.rows])]


def _line(table: Table, id: str, tried: Tried) -> list[str]:
    assert table.rates is not None
    row, losses = table.row(id), _losses(table, id, tried)
    least = min((value for value in losses if value is not None), default=None)
    used = table.rate_of(row)
    shown = [_shown(value, least=value == least) for value in losses]
    return [f"{row.label} (`{id}`)", *shown, "the recipe's" if used is None else f"{used:g}"]


def _losses(table: Table, id: str, tried: Tried) -> list[float | None]:
    """The loss of a row at each rate of the grid; None for a rate without a trial or without a loss."""
    assert table.rates is not None
    return [loss(tried[id, rate]) if (id, rate) in tried else None for rate in table.rates.grid]


def _is_behind(table: Table, id: str, tried: Tried) -> bool:
    """Whether another rate than the row's own has a lower loss, where the row's own has been tried."""
    used = table.rate_of(table.row(id))
    losses = [value for value in _losses(table, id, tried) if value is not None]
    if used is None or (id, used) not in tried or not losses:
        return False
    own = loss(tried[id, used])
    return own is None or own > min(losses)


def _shown(value: float | None, least: bool) -> str:
    if value is None:
        return "–"
    return f"**{value:.4f}**" if least else f"{value:.4f}"
