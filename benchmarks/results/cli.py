"""The command line of the results tables."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from benchmarks.results import claims_page, embedded, page, pool
from benchmarks.results.cell import Cell, Record, Store, differences
from benchmarks.results.made import index
from benchmarks.results.progress import Progress
from benchmarks.results.table import Table, load, names
from benchmarks.results.worker import SMALL_LM
from rich.console import Console

from flt.core.errors import InputError
from flt.run.conf_groups import config_folder

TABLES = Path(__file__).parent / "tables"
CLAIMS = "claims.yaml"
"""Beside the folder of the tables."""
RESULTS = Path(__file__).parents[2] / "docs" / "results"
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None, tables: Path = TABLES, results: Path = RESULTS) -> int:
    """Runs what is missing of the tables and writes their pages, and that of the claims.

    Args:
        arguments: Of the command line; None: the process's.
        tables: Folder of the YAMLs.
        results: Folder of the pages.

    Returns:
        The exit code: 0, 1 for a failed cell or one that came out otherwise, 2 for a mistake in the input, 130 for an
        interrupt.
    """
    options = _parser().parse_args(arguments)
    try:
        return Job(options, tables, results, Console())()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept, and the same command runs the others", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="all without")
    parser.add_argument("--cells", metavar="ROW,ROW", type=_listed, help="only the cells of these rows")
    parser.add_argument("--seeds", metavar="N,N", type=lambda text: [int(n) for n in _listed(text)], help="only these")
    parser.add_argument("--jobs", metavar="N", type=int, default=pool.cores(), help="cells side by side (%(default)s)")
    parser.add_argument("--again", metavar="ROW", help="run a finished row's first seed again, and compare")
    parser.add_argument("--write", action="store_true", help="only write the pages anew from the cells")
    parser.add_argument("--list", action="store_true", help="only say which cells are missing")
    parser.add_argument("--prune", action="store_true", help="remove cells that are in the table no more")
    return parser


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


@dataclasses.dataclass
class Job:
    """One call of the command.

    Attributes:
        options: Of the command line.
        tables: Folder of the YAMLs.
        results: Folder of the pages.
        console: Where to say what happens.
    """

    options: argparse.Namespace
    tables: Path
    results: Path
    console: Console

    def __call__(self) -> int:
        """Does what the options ask for; returns the exit code."""
        if self.options.jobs < 1:
            raise InputError.of("--jobs", self.options.jobs, "an integer >= 1")
        self.store, chosen = Store(self.results / "cells"), self._chosen()
        if self.options.again:
            return self._again(chosen)
        missing = [cell for table in chosen for cell in self._missing(table)]
        for table in chosen:
            self._strangers(table)
        if self.options.list:
            self.console.print("\n".join(cell.name for cell in missing) or "no cell is missing", highlight=False)
            return 0
        if self.options.write:
            missing = []
        require_data(missing)
        require_small_lm(missing)
        failed = self._run(missing) if missing else []
        self._write(chosen, ran=bool(missing))
        return FAILED if failed else 0

    def _chosen(self) -> list[Table]:
        known = names(self.tables)
        for name in self.options.tables:
            if name not in known:
                raise InputError.of("TABLE", name, known, "there is no such table")
        return self._load(self.options.tables or known)

    def _load(self, chosen: list[str]) -> list[Table]:
        return [load(self.tables / f"{name}.yaml") for name in chosen]

    def _missing(self, table: Table) -> list[Cell]:
        """What is to run, the learning rates' trials first; they aren't run for seeds that were asked for by number."""
        trials = [] if self.options.seeds else list(table.trials(self.options.cells).values())
        cells = {cell.name: cell for cell in [*trials, *table.cells(self.options.cells, self.options.seeds)]}
        return [cell for cell in cells.values() if self.store.read(cell) is None]

    def _strangers(self, table: Table) -> None:
        """Files of rows that have left the table are named, and removed when asked for."""
        for path in self.store.strangers(table.name, [*table.cells(), *table.trials().values()]):
            self._say(f"{path.stem} is no cell of {table.name}: {'removed' if self.options.prune else 'ignored'}")
            if self.options.prune:
                path.unlink()

    def _run(self, cells: list[Cell]) -> list[Cell]:
        """Runs the cells and keeps their records; returns those that failed."""
        failed = []
        jobs = min(self.options.jobs, len(cells))
        with Progress(self.console, len(cells), jobs) as progress, contextlib.closing(pool.run(cells, jobs)) as answers:
            for cell, answer in answers:
                if isinstance(answer, Record):
                    self.store.write(cell, answer)
                else:
                    failed.append(cell)
                progress.finished(cell, answer)
        if failed:
            self._say(f"{len(failed)} of {len(cells)} cells failed: {', '.join(cell.name for cell in failed)}")
        return failed

    def _write(self, tables: list[Table], ran: bool) -> None:
        written = [path for table in tables for path in page.publish(table, self.store, self.results)]
        written += embedded.publish(tables, self.store, self.results.parent)
        every = self._load(names(self.tables))
        written += claims_page.publish(self.tables.parent / CLAIMS, every, self.store, self.results)
        written += index(every, self.store, self.results)
        for path in written:
            self._say(f"wrote {os.path.relpath(path)}")
        if not written and not ran:
            self._say("every cell is finished and every page is up to date: nothing to do")

    def _again(self, tables: list[Table]) -> int:
        """Runs one cell a second time and says whether the figures are the same."""
        if len(tables) != 1:
            raise InputError.of("--again", self.options.again, "a row of the one table that is named")
        table = tables[0]
        seeds = self.options.seeds or table.seeds_of(table.row(self.options.again))[:1]
        cells = table.cells([self.options.again], seeds)
        kept = {cell.name: self.store.read(cell) for cell in cells}
        if unfinished := [name for name, record in kept.items() if record is None]:
            raise InputError.of("--again", ", ".join(unfinished), "a finished cell")
        require_data(cells)
        require_small_lm(cells)
        return max([self._compare(kept[cell.name], cell, answer) for cell, answer in pool.run(cells, 1)], default=0)

    def _compare(self, old: Record | None, cell: Cell, answer: Record | str) -> int:
        assert old is not None
        if isinstance(answer, str):
            self._say(f"{cell.name} failed:\n{answer}")
            return FAILED
        found = differences(old, answer)
        if not found:
            self._say(f"{cell.name}: all figures are the same again, {answer.seconds:.0f} s")
            return 0
        self._say(f"{cell.name}: {len(found)} figures differ, the first of them:")
        for key, (before, now) in list(found.items())[:10]:
            self._say(f"  {key}: {before} before, {now} now")
        if (old.versions, old.hardware) != (answer.versions, answer.hardware):
            self._say(f"  before: {old.hardware}, {old.versions}\n  now: {answer.hardware}, {answer.versions}")
        return FAILED

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def require_data(cells: list[Cell]) -> None:
    """Refuses at once what every cell would fail on.

    Raises:
        InputError: Cells read a local copy of a data set, and FLT_DATA doesn't name a folder with it.
    """
    folder = os.environ.get("FLT_DATA")
    for cell in cells:
        said = dict(override.split("=", 1) for override in cell.overrides)
        chosen, used = said.get("data", "digits"), yaml.safe_load(said.get("data.use", "null"))
        source = config_folder() / "data" / f"{chosen}.yaml"
        settings = yaml.safe_load(source.read_text()) if source.is_file() else {}
        sets = {name: own for name, own in settings.get("sets", {}).items() if used is None or name in used}
        for local in (own.get("local") for own in (settings, *sets.values())):
            if local and not folder:
                raise InputError(f"FLT_DATA is not set: table {cell.table} reads {local} from the folder that it names")
            if local and not (Path(folder or "") / local).is_file():
                raise InputError.of("FLT_DATA", folder, f"a folder with {local}, which table {cell.table} reads")


def require_small_lm(cells: list[Cell]) -> None:
    """Trains the small causal language model once, before processes side by side would each train it.

    Raises:
        InputError: That failed, for the reason that it has said.
    """
    if any(SMALL_LM in cell.overrides for cell in cells):
        command = [sys.executable, "-m", "benchmarks.tools.small_lm"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise InputError("the small language model couldn't be made: make small-lm says why")
