"""The command ``flt list``, which prints recipes, parts, data sets, models or runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from flt.cli.words import read_words
from flt.core.errors import InputError
from flt.core.formatting import printable

if TYPE_CHECKING:
    from rich.table import Table

    from flt.run.listing import Choice, Group, RunRow

HELP = """\
usage: flt list [--json]                the groups of the configuration
       flt list <group> [--json]        choices of algo, data, model, rule ...
       flt list runs [root=folder]      the runs in lightning_logs or a folder

flt list algo shows each recipe with its paper (arXiv) and the parts that it
sets; flt train algo=hafl --help explains one. A run is shown with its recipe,
data, rounds, the metric of the test (else of the validation) and when it was
written to. --json prints the same as a JSON list.

  flt list algo
  flt list rule
  flt list runs root=my_runs --json"""
COLUMNS = ("run", "recipe", "data", "rounds", "metric", "written")
WIDEST = 16
"""Largest width of the column of the data."""


def run(arguments: Sequence[str]) -> int:
    """Prints the list.

    Raises:
        InputError: There is no such group or folder of runs.
    """
    from flt.run.listing import RUNS, listing

    words = read_words("list", arguments, ["root"], ["json"], (0, None))
    if len(words.runs) > 1:
        raise InputError.of("list", " ".join(words.runs), f"one group, or {RUNS}")
    group = words.runs[0] if words.runs else None
    if "root" in words.settings and group != RUNS:
        raise InputError.of("root", words.settings["root"], f"a folder of runs, for flt list {RUNS}")
    found = listing(group, root=words.settings.get("root", "lightning_logs"))
    if "json" in words.flags:
        print(json.dumps([dataclasses.asdict(each) for each in found], default=str, indent=1))
    else:
        _print(found)
    return 0


def _print(found: Sequence[Group] | Sequence[Choice] | Sequence[RunRow]) -> None:
    from rich.console import Console

    from flt.run.listing import RunRow

    if not found:
        print("there is no run yet; flt train algo=hafl makes one")
        return
    console = Console(highlight=False)
    if isinstance(found[0], RunRow):
        console.print(_runs([row for row in found if isinstance(row, RunRow)], console.width))
    else:
        rows = [row for each in found for row in _rows(each)]
        console.print(_two_columns(rows))


def _rows(each: Group | Choice | RunRow) -> Iterator[tuple[str, str]]:
    """Yields the lines about a group or a choice: what stands on the left and what on the right."""
    from flt.run.listing import Choice, Group

    if isinstance(each, Group):
        yield each.name, each.meaning
        yield "", ", ".join(each.choices)
    elif isinstance(each, Choice):
        yield each.name, each.summary if each.paper in each.summary else f"{each.summary} (arXiv {each.paper})"
        if given := {**each.parts, **each.settings}:
            yield "", "  ".join(f"{key}={value}" for key, value in given.items())


def _two_columns(rows: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for left, right in rows:
        table.add_row(Text(left, "bold"), Text(right, "" if left else "dim"))
    return table


def _runs(rows: Sequence[RunRow], width: int) -> Table:
    """Returns the table of some runs. Long names of runs and data are folded, so that it is as wide as the terminal."""
    from rich.table import Table
    from rich.text import Text

    cells = [_cells(row) for row in rows]
    needed = [max(len(text) for text in column) for column in zip(COLUMNS, *cells, strict=True)]
    needed[2] = min(needed[2], WIDEST)
    needed[0] = max(len(COLUMNS[0]), min(needed[0], width - sum(needed[1:]) - 2 * (len(COLUMNS) - 1)))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, wide in zip(COLUMNS, needed, strict=True):
        right = "right" if name in ("rounds", "metric") else "left"
        table.add_column(name, width=wide, justify=right, overflow="fold")  # type: ignore[arg-type]  # of two words
    for row in cells:
        table.add_row(*(Text(text) for text in row))
    if any(row.value is not None and not row.on_test for row in rows):
        table.caption, table.caption_justify = "* on the validation examples, as there are no test examples", "left"
    return table


def _cells(row: RunRow) -> list[str]:
    from flt.run.show import FINISHED
    from flt.run.stored import label_of

    done = f"{row.rounds_done}/{row.rounds}{'' if row.state == FINISHED else f' {row.state}'}"
    figure = "-" if row.value is None else f"{row.metric} {row.value:.3f}{' ' if row.on_test else '*'}"
    when = datetime.fromtimestamp(row.written).strftime("%y-%m-%d %H:%M")
    about = [row.recipe, row.data, done] if row.recipe else ["damaged", "", "-"]
    return [printable(text) for text in (label_of(row.folder), *about, figure, when)]
