"""A small table of results, records of runs that nobody ran, and processes that only pretend to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.results.cell import Cell, Record, Store
from benchmarks.results.table import Table, load

YAML = """
title: A toy table
text: Two rows.
common: [data=digits, model=embedded, rounds=3, clients=3, local.steps=1, eval.examples=20, eval.client_examples=0]
seeds: [0, 1, 2]
control: plain
target: 0.5
rows:
  - {id: plain, label: Plain, overrides: [algo=fedit], group: Recipes}
  - {id: fancy, label: Fancy, overrides: [algo=hafl, rounds=4], group: Recipes}
columns:
  - {label: test accuracy, reduce: test, key: acc, better: higher, paired: true}
  - {label: rounds, reduce: rounds_to_target, format: .1f, paired: true}
  - {label: MB, reduce: bytes_to_target, scale: 1.0e-6, format: .2f}
pairs:
  - [fancy, plain]
plots:
  - {file: acc, y: round/val_acc, rows: [plain, fancy], title: Accuracy}
"""


def table(folder: Path, text: str = YAML) -> Table:
    """Writes a table into ``folder/tables`` and loads it."""
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "toy.yaml").write_text(text)
    return load(folder / "tables" / "toy.yaml")


def record(cell: Cell, accuracies: Sequence[float | None] = (0.25, 0.375, 0.5), test: float = 0.5) -> Record:
    """What a run of the cell might have left: 1 MB up and 2 MB down in each round."""
    rounds = range(1, len(accuracies) + 1)
    history: dict[str, list[float | None]] = {
        "round/val_acc": list(accuracies),
        "comm/total_up": [n * 1e6 for n in rounds],
        "comm/total_down": [n * 2e6 for n in rounds],
        "time/total_seconds": [n / 8 for n in rounds],
    }
    named = {"table": cell.table, "row": cell.row, "seed": cell.seed, "overrides": cell.overrides}
    made = {"versions": {"torch": "2.13.0"}, "hardware": "2 cores of a CPU", "threads": 1, "seconds": 5.0}
    return Record(**named, fingerprint=cell.fingerprint, history=history, test={"acc": test}, **made)


def finish(toy: Table, folder: Path) -> Store:
    """Every cell of the table with a record, in ``folder/results``."""
    store = Store(folder / "results" / "cells")
    for cell in toy.cells():
        bonus = 0.125 if cell.row == "fancy" else 0.0
        store.write(cell, record(cell, (0.25, 0.375 + bonus, 0.5), test=0.5 + bonus + cell.seed / 64))
    return store


@contextlib.contextmanager
def _closed(connection: Connection) -> Iterator[None]:
    with contextlib.suppress(EOFError, OSError):
        yield
    connection.close()


def serve(connection: Connection, folder: str) -> None:
    """Stands in for the worker's: a seed of 1 is a run that fails, one of 2 a process that dies."""
    with _closed(connection):
        while True:
            cell = connection.recv()
            (Path(folder) / cell.row).touch()
            if cell.seed == 2:
                os._exit(3)
            connection.send("it failed" if cell.seed == 1 else record(cell))
