"""The command ``flt show``, which prints a page about a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flt.cli.commands import COMMANDS
from flt.cli.words import read_words
from flt.core import formatting
from flt.core.formatting import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flt.run.show import RunPage

HELP = """\
usage: flt show RUN [--json] [root=folder]

A page about a run: recipe and paper, data, model, clients, how far it is and
how to go on with it, metrics, bytes and time, the settings that differ from the
recipe's defaults, files, and the lines that load its models. RUN is the folder
of a run or of a model in it, or last for the run of root= that was written to
last. --json prints the same as one JSON object.

  flt show last
  flt show lightning_logs/hafl/version_0 --json"""
MOST, MOST_METRICS = 8, 3
"""Largest number of exported models, and of metrics of a model, that are shown. ``--json`` lists all."""
LEFT = 24
"""Width of the left column."""
EVENTS = "events.out.tfevents"


def run(arguments: Sequence[str]) -> int:
    """Prints the page.

    Raises:
        InputError: There is no such run, or one of its files is damaged.
    """
    from flt.run.show import show

    words = read_words("show", arguments, COMMANDS["show"].keys, ["json"])
    page = show(words.runs[0], root=words.settings.get("root", "lightning_logs"))
    if "json" in words.flags:
        print(json.dumps(dataclasses.asdict(page), default=str, indent=1))
    else:
        _print(page)
    return 0


def _print(page: RunPage) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text.assemble((printable(page.label), "bold"), f" {_state(page)}"))
    if page.go_on:
        what = "to write it again" if page.problem else "to go on"
        console.print(Text(printable(f"{what}: {page.go_on}")), soft_wrap=True)  # one line, for copying
    _print_table(console, dict(_about(page)))
    if page.metrics:
        console.print(_metrics(page))
    for title, rows in (("settings that differ from the recipe's", _settings(page)), ("files", _files(page))):
        if found := dict(rows):
            console.print(Text(f"\n{title}", "bold"))
            _print_table(console, found, 2)
    for line in _lines(page):
        console.print(Text(printable(line)), soft_wrap=True)


def _print_table(console: Console, rows: Mapping[str, str], indent: int = 0) -> None:
    """Prints rows as a table. A name that is wider than its column, such as that of a file, has a line of its own."""
    from rich.text import Text

    fitting: dict[str, str] = {}
    for name, value in rows.items():
        if len(printable(name)) + indent <= LEFT:
            fitting[name] = value
            continue
        if fitting:
            console.print(_table(fitting, indent))
        fitting = {}
        console.print(Text(printable(f"{' ' * indent}{name}  {value}")), soft_wrap=True)
    if fitting:
        console.print(_table(fitting, indent))


def _table(rows: Mapping[str, str], indent: int = 0) -> Table:
    """Returns a table of two columns, of which the left one is as wide as in the page's other tables."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=LEFT, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        # Text is needed because rich would read brackets in a plain string as markup.
        table.add_row(Padding(Text(printable(name)), (0, 0, 0, indent)), Text(printable(value)))
    return table


def _state(page: RunPage) -> str:
    from flt.run.show import FINISHED, RUNNING

    rounds = f"{page.rounds_done} of {page.rounds} rounds"
    if page.state == RUNNING:
        return f"is running: {rounds} done"
    if page.state == FINISHED:
        early = page.rounds is not None and page.rounds_done < page.rounds
        return f"finished: {rounds}, ended early by stop.*" if early else f"finished: {rounds}"
    if page.rounds_done and page.problem:
        return f"has {rounds} done, but {page.problem}"
    return f"is incomplete: {page.problem}" if page.problem else f"has stopped: {rounds} done"


def _about(page: RunPage) -> Iterator[tuple[str, str]]:
    yield "recipe", page.summary or page.recipe
    yield "data", page.data
    yield "model", page.model
    yield "clients", page.clients
    yield "seed", str(page.seed)
    if (share := page.metrics.get("round/clustering_acc")) is not None:
        yield "clusters", f"{100 * share:.1f} % of the jobs are in the group of their task"
    if page.bytes_up is not None and page.bytes_down is not None:
        yield "bytes", f"{formatting.size(page.bytes_up)} up, {formatting.size(page.bytes_down)} down"
    if page.seconds is not None:
        each = formatting.duration(page.seconds / max(1, page.rounds_done))
        yield "time", f"{formatting.duration(page.seconds)}, {each} per round"
    if page.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in page.versions.items())


def _metrics(page: RunPage) -> Table:
    """Returns the table of the models that were evaluated in the last round, with all of their metrics."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from flt.run.summary import models

    last = page.metrics | {f"test/{name}": value for name, value in page.test.items()}
    rows = {
        label: {_plain(key): v for key, v in row.items()} for label, row in models(last, "worst 10 % of clients") if row
    }
    found = dict.fromkeys(name for row in rows.values() for name in row if name != "clustering_acc")
    first = [name for pick in (formatting.score, formatting.loss) if (name := pick(found))]
    names = list(dict.fromkeys([*first, *found]))[:MOST_METRICS]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metrics of the last round")
    for name in names:
        table.add_column(Text(printable(name)), justify="right")
    for label, row in rows.items():
        table.add_row(Text(printable(label)), *(f"{row[name]:.4f}" if name in row else "-" for name in names))
    return table


def _plain(name: str) -> str:
    return name.removeprefix("val_")


def _settings(page: RunPage) -> Iterator[tuple[str, str]]:
    """Yields the settings that differ from the recipe's, as they are written on a command line."""
    from flt.run.overrides import hydra_value

    yield from ((key, hydra_value(value)) for key, value in page.settings.items())


def _files(page: RunPage) -> Iterator[tuple[str, str]]:
    events = sum(size for name, size in page.files.items() if name.startswith(EVENTS))
    newest = max(path.stat().st_mtime for path in (page.folder, *map(page.folder.joinpath, page.files)))
    for name, size in page.files.items():
        if not name.startswith(EVENTS):
            yield name, formatting.size(size)
    if events:
        yield "TensorBoard's events", formatting.size(events)
    yield "last written", datetime.fromtimestamp(newest).strftime("%Y-%m-%d %H:%M")


def _lines(page: RunPage) -> Iterator[str]:
    """Yields the command of the run and the lines of Python that load its models, each in one line, for copying."""
    if page.command:
        yield ""
        yield "to train such a run"
        yield f"  {page.command}"
    if page.models:
        yield ""
        yield "to load in Python"
        yield from (f"  flt.load({_quoted(folder)})" for folder in list(page.models.values())[:MOST])
        if len(page.models) > MOST:
            yield f"  and {len(page.models) - MOST} more"


def _quoted(folder: Path) -> str:
    return json.dumps(str(folder), ensure_ascii=False)
