"""``flt.show``: what the files of a run say about it. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flt.callbacks.record_format import RECORD
from flt.core import formatting
from flt.core.files import is_regular
from flt.core.locks import is_locked
from flt.export.places import exported_models
from flt.run.command_line import local_command
from flt.run.conf_groups import choices, summary
from flt.run.conf_heads import paper
from flt.run.overrides import difference
from flt.run.stored import LOCK, NO_ROUNDS, OWN, StoredRun, label_of, read_run

LONGEST_LINE = 1 << 22
FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"
CHOSEN = ("name", "root", "threads")
"""Keys that don't tell how a run differs from its recipe: where it lies, and what flt itself chooses."""


@dataclasses.dataclass(frozen=True)
class RunPage:
    """Contents of a run's files, as one page.

    Attributes:
        folder: Folder of the run.
        recipe: Name of the recipe.
        summary: First sentence about the recipe. Empty if this version of flt has no such recipe.
        paper: arXiv number of the recipe's paper. Empty if it follows none.
        data: The data set, and its split into tasks if it is split.
        model: The backbone and the adapter.
        clients: Number of clients, and how the data are divided among them.
        seed: Seed of the run.
        rounds_done: Number of finished rounds.
        rounds: Number of rounds of the whole run.
        state: ``finished``, ``running`` (a process holds the lock of the run) or ``stopped``.
        problem: What is wrong with the files of a run that has stopped, such as a missing export. Empty otherwise.
        go_on: How a run that has stopped is continued, or its files are written again. Empty otherwise.
        metrics: Metrics of the last finished round, except those of the test.
        test: Metrics on the test examples. Empty if there are none.
        bytes_up: Bytes that all clients have sent. None if no round has finished.
        bytes_down: Bytes that were sent to all clients. None if no round has finished.
        seconds: Time of all rounds. None if no round has finished.
        settings: Dotted key -> value of the settings that differ from the recipe's defaults.
        files: Name in the run's folder -> size in bytes. The name of a folder ends with a slash.
        models: Name of an exported model -> its folder. The name is empty if there is only one.
        versions: Package -> version with which the run was started. Empty if they aren't recorded.
        command: Command or line of Python that makes such a run, with paths of this machine. Empty if none is recorded.
    """

    folder: Path
    recipe: str
    summary: str
    paper: str
    data: str
    model: str
    clients: str
    seed: int | None
    rounds_done: int
    rounds: int | None
    state: str
    problem: str
    go_on: str
    metrics: dict[str, float]
    test: dict[str, float]
    bytes_up: int | None
    bytes_down: int | None
    seconds: float | None
    settings: dict[str, Any]
    files: dict[str, int]
    models: dict[str, Path]
    versions: dict[str, str]
    command: str

    @property
    def label(self) -> str:
        """Short name of the run, such as ``hafl/version_3``."""
        return label_of(self.folder)

    @property
    def score(self) -> tuple[str, float] | None:
        """Name and value of the metric that best measures the model, on the test examples if there are any."""
        for figures in (self.test, formatting.between(self.metrics, "round/")):
            if name := formatting.score(figures):
                return name, figures[name]
        return None


def show(run: str | Path = "last", *, root: str | Path = "lightning_logs") -> RunPage:
    """Returns what the files of a run say: its recipe, data, state, metrics, costs, files and exported models.

    Args:
        run: Folder of a run or of an exported model in it, or ``last``.
        root: Folder of all runs, in which ``last`` is looked for.

    Raises:
        InputError: There is no such run, or one of its files is damaged.

    Example:
        >>> show("last").rounds_done  # doctest: +SKIP
        10
    """
    return page_of(read_run(run, root))


def page_of(stored: StoredRun) -> RunPage:
    """Returns what the files of a run say."""
    last = stored.history[-1] if stored.history else {}
    recipe, state = str(stored.setting("algo", stored.setting("name", "?"))), _state(stored)
    record, rounds = _record(stored.folder), stored.setting("rounds")
    costs = (last.get(f"comm/total_{way}", math.nan) for way in ("up", "down"))
    up, down = (int(cost) if math.isfinite(cost) else None for cost in costs)
    return RunPage(
        folder=stored.folder,
        recipe=recipe,
        summary=summary("algo", recipe) if recipe in choices("algo") else "",
        paper=paper(recipe),
        data=_data(stored),
        model=_model(stored),
        clients=_clients(stored),
        seed=stored.setting("seed"),
        rounds_done=_rounds_done(stored),
        rounds=rounds if isinstance(rounds, int) else None,
        state=state,
        problem=_problem(stored) if state == STOPPED else "",
        go_on=_go_on(stored) if state == STOPPED else "",
        metrics={key: value for key, value in last.items() if not key.startswith("test/") and key != "round"},
        test=formatting.between(last, "test/"),
        bytes_up=up,
        bytes_down=down,
        seconds=last.get("time/total_seconds"),
        settings={key: value for key, value in difference(stored.settings).items() if key not in CHOSEN},
        files=_files(stored.folder),
        models=exported_models(stored.exported) if stored.exported else {},
        versions={str(name): str(text) for name, text in record.get("versions", {}).items()},
        command=local_command(str(record.get("command", "")), stored),
    )


def _state(stored: StoredRun) -> str:
    """Returns whether a run is being trained, has finished or has stopped before its end."""
    if is_locked(stored.folder / LOCK):
        return RUNNING
    rounds, stops = stored.setting("rounds"), stored.setting("stop", {})
    may_end_early = isinstance(stops, Mapping) and any(value is not None for value in stops.values())
    complete = may_end_early or not isinstance(rounds, int) or _rounds_done(stored) >= rounds
    return FINISHED if stored.exported and complete else STOPPED


def _problem(stored: StoredRun) -> str:
    """Returns what is wrong with the files of a run that looks as if it had stopped before its end."""
    rounds = stored.setting("rounds")
    if stored.lacks_rounds:
        return NO_ROUNDS
    is_done = isinstance(rounds, int) and _rounds_done(stored) >= rounds
    return "adapter/ or model/ is missing" if is_done and stored.exported is None else ""


def _rounds_done(stored: StoredRun) -> int:
    return int(stored.history[-1].get("round", len(stored.history))) if stored.history else 0


def _go_on(stored: StoredRun) -> str:
    if stored.setting("data.name") == OWN:
        return f'flt.fit(..., overrides=["resume={stored.folder}"])'
    return f"flt train resume={stored.folder}"


def _data(stored: StoredRun) -> str:
    name, path, tasks = (stored.setting(f"data.{key}") for key in ("name", "path", "tasks"))
    if name == OWN:
        return "the caller's of flt.fit"
    parts = [str(path) if name in ("file", "hub") and path else str(name)]
    named = list(stored.setting("data.sets") or (tasks if stored.setting("jobs") == "per_task" else None) or [])
    if named:
        parts.append(f"{len(named)} tasks")
    elif stored.classes:
        parts.append(f"{len(next(iter(stored.classes.values())))} classes")
    return ", ".join(parts)


def _model(stored: StoredRun) -> str:
    adapter = str(stored.setting("adapter.name", "?"))
    ranks = stored.setting("ranks") or stored.setting("adapter.rank")
    if ranks == "fleet":
        ranks = f"up to {stored.setting('adapter.rank')}, by the devices' memory"
    sized = f"{adapter} of rank {ranks}" if ranks and adapter == "lora" else adapter
    named = stored.setting("model.path") or stored.setting("model.name", "?")
    return str(named) if adapter == "none" else f"{named}, {sized}"


def _clients(stored: StoredRun) -> str:
    kind = str(stored.setting("partition.kind", "?"))
    about = {"dirichlet": "alpha", "quantity": "alpha", "shards": "shards_per_client"}.get(kind)
    how = f"{kind} ({about} {stored.setting(f'partition.{about}')})" if about else str(kind)
    if kind == "by_column":
        how = f"by the column {stored.setting('data.column')}"
    if kind == "by_column_dirichlet":
        column, alpha = stored.setting("data.column"), stored.setting("partition.alpha")
        how = f"by the column {column}, and dirichlet (alpha {alpha}) in each value"
    drawn = stored.setting("cohort.size")
    cohort = f", {drawn} in each round" if drawn and stored.setting("cohort.sampling") == "fixed" else ""
    own = stored.setting("data.name") == OWN
    return "the caller's of flt.fit" if own else f"{stored.setting('clients', '?')}{cohort}, {how}"


def _files(folder: Path) -> dict[str, int]:
    """Returns name -> size of what is in a run's folder. Links and hidden files are left out."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name.startswith("."):
            continue
        if path.is_dir():
            inner = (Path(top, name) for top, _, names in os.walk(path) for name in names)
            found[f"{path.name}/"] = sum(each.stat().st_size for each in inner if is_regular(each))
        else:
            found[path.name] = path.stat().st_size
    return found


def _record(folder: Path) -> dict[str, Any]:
    """Returns the first line of a run's record. Empty if there is none, or another program wrote it."""
    try:
        with (folder / RECORD).open("rb") as file:
            found = json.loads(file.readline(LONGEST_LINE))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("versions", {}), dict) else {}
