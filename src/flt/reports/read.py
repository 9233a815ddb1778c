"""Reads what a report shows of a run: the files of the run, and its record if there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flt.callbacks.record_format import FORMAT, LARGEST, RECORD
from flt.core.errors import InputError
from flt.core.files import system_message
from flt.core.typed import first_line
from flt.run.stored import METRICS, NO_ROUNDS, StoredRun, read_run, runs_below

MOST = 60
"""Largest number of runs in one report."""
_ALLOWED = f"a run with the {RECORD} that flt wrote"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A run with its record.

    Attributes:
        run: The files of the run.
        head: First line of the record. Empty if the run has none, such as a run of an earlier version of flt.
        rounds: Further lines of the record, one for each round.
    """

    run: StoredRun
    head: dict[str, Any]
    rounds: list[dict[str, Any]]

    @property
    def jobs(self) -> list[str]:
        """Name of each listed job: the number of its client, with that of the job if any client has several."""
        several = any(index for _, index in self.head["jobs"])
        return [f"{client}.{index}" if several else f"{client}" for client, index in self.head["jobs"]]

    @property
    def layers(self) -> dict[str, int]:
        """Short name of each layer with LoRA -> its rank."""
        names = short_names([name for name, _ in self.head["layers"]])
        return dict(zip(names, (int(rank) for _, rank in self.head["layers"]), strict=True))

    def having(self, part: str) -> list[dict[str, Any]]:
        """Returns the lines that have a part."""
        return [line for line in self.rounds if line.get(part)]

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Turns an error that a damaged record causes into an InputError."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError.of("run", self.run.folder, _ALLOWED, first_line(error)) from error


def find_runs(runs: list[str | Path]) -> list[Path]:
    """Returns the folders of the named runs, once each. A folder of runs stands for all runs in it.

    Raises:
        InputError: There is no such run, or there are more than MOST.
    """
    found = dict[Path, None]()
    for run in runs:
        inside = [] if str(run) == "last" else runs_below(run)
        found |= dict.fromkeys(inside or [read_run(run).folder])
    if len(found) > MOST:
        raise InputError.of("report", f"{len(found)} runs", f"at most {MOST}")
    return list(found)


def read(run: str | Path) -> Recorded:
    """Reads a run and its record.

    Raises:
        InputError: There is no such run, or one of its files is damaged.
    """
    stored = read_run(run)
    if stored.lacks_rounds:
        raise InputError.of("run", stored.folder, f"a run with the {METRICS} that flt wrote", NO_ROUNDS)
    lines = _lines(stored.folder)
    if not lines:
        return Recorded(stored, {}, [])
    head, *rounds = lines
    if head.get("format") != FORMAT:
        raise InputError.of("run", stored.folder, _ALLOWED, f"its format is {head.get('format')}, not {FORMAT}")
    done = len(stored.history)
    recorded = Recorded(stored, head, [line for line in rounds if isinstance(line.get("round"), int)])
    return dataclasses.replace(recorded, rounds=[line for line in recorded.rounds if line["round"] <= done])


def short_names(names: list[str]) -> list[str]:
    """Returns dotted names without the words that all names begin with.

    Example:
        >>> short_names(["bert.layer.0.query", "bert.layer.1.query"])
        ['0.query', '1.query']
    """
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts), default=1) - 1
    start = next((i for i in range(shortest) if len({words[i] for words in parts}) > 1), shortest)
    return [".".join(words[start:]) for words in parts]


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a record. The last line of a run that was killed may be incomplete, and is left out."""
    path = folder / RECORD
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError.of("run", folder, f"a run with a {RECORD} that can be read", system_message(error)) from error
    if len(data) > LARGEST:
        raise InputError.of("run", folder, f"a {RECORD} of at most {LARGEST} bytes")
    found = []
    texts = data.decode(errors="replace").splitlines()
    for number, text in enumerate(texts):
        try:
            line = json.loads(text, parse_constant=_refused)
        except (ValueError, RecursionError) as error:
            if number and number == len(texts) - 1:
                break
            why = "no complete JSON" if isinstance(error, json.JSONDecodeError | RecursionError) else str(error)
            why = f"line {number + 1} of {RECORD}: {why}"
            raise InputError.of("run", folder, _ALLOWED, why) from error
        if not isinstance(line, dict):
            raise InputError.of("run", folder, _ALLOWED, f"line {number + 1} of {RECORD}: no object")
        found.append(line)
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
