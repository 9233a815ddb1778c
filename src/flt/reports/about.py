"""Parts of a report beside its charts: settings and their differences, how to load the run, and how it was made."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flt.core.files import last_name
from flt.export.card_code import lines_in
from flt.export.card_seal import CARD_FILE, is_own_card
from flt.export.inputs import read_inputs
from flt.export.places import exported_models
from flt.reports.charts import Code, Table
from flt.reports.read import Recorded
from flt.run import summary
from flt.run.stored import OWN, StoredRun

FIRST = ("algo", "seed", "rounds", "clients", "data.name", "data.path", "model.name", "model.path", "adapter.name")
"""Keys that are shown first."""
PLACES = ("name", "root", "resume")
"""Keys that say only where a run is."""
LONGEST = 200
"""Largest number of characters of a setting's value that is shown."""


def settings(run: StoredRun) -> Table:
    """Returns the table of all settings, of whose paths only the last names are shown."""
    rows = sorted(flat(run).items(), key=lambda row: (_order(row[0]), row[0]))
    return Table("All settings of the run", ["key", "value"], [[key, text(value)] for key, value in rows], left=2)


def differences(runs: Sequence[StoredRun], names: Sequence[str]) -> list[Table]:
    """Returns the tables of the settings in which the runs differ, first those that name the problem and the parts.

    Keys that only say where a run is are left out.
    """
    found = [flat(run) for run in runs]
    keys = sorted({key for settings in found for key in settings if key not in PLACES}, key=lambda k: (_order(k), k))
    rows = [[key, *(text(s[key]) if key in s else "–" for s in found)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    main = [row for row in differing if row[0] in FIRST or "." not in row[0] or row[0].endswith(".name")]
    parts = {
        "Settings that differ": main,
        "Settings of parts that differ": [row for row in differing if row not in main],
    }
    return [Table(title, ["key", *names], found, left=len(names) + 1) for title, found in parts.items() if found]


def loading(run: StoredRun) -> list[Code]:
    """Returns the lines that load the exported model, if the run has finished."""
    if run.exported is None:
        return []
    models = exported_models(run.exported)
    folder = next(iter(models.values()))
    path = f"{shown_path(run.folder)}/{folder.relative_to(run.folder).as_posix()}"
    also = f" The run has {len(models)} models: {', '.join(models)}." if len(models) > 1 else ""
    lines = _lines_of_card(folder, path)
    codes = []
    if lines is not None and "import flt" in lines.splitlines():
        codes.append(Code(f"Load the model with flt, and use it.{also}", lines))
    else:
        load = f"import flt\n\nmodel = flt.load({json.dumps(path, ensure_ascii=False)})"
        codes.append(Code(f"Load the model with flt.{also}", load))
        library = "peft" if lines is not None and "import peft" in lines else "transformers"
        codes += [Code(f"Load the model with {library}, and use it. flt isn't needed.", lines)] if lines else []
    if kind := _kind(run, folder):
        use = "Generate" if kind == "causal" else "Predict"
        codes.append(Code(f"{use} on the command line.", summary.use(shown_path(run.folder), kind)))
    return codes


def _kind(run: StoredRun, folder: Path) -> str:
    """Returns the kind of a model's inputs: text, pair, image or causal. Empty for a user's own module."""
    if run.setting("data.name") == OWN:
        return ""
    with contextlib.suppress(ValueError, OSError):  # a damaged file: the rest of the report can be read
        if (inputs := read_inputs(folder)) is not None and inputs.tasks:
            return next(iter(inputs.tasks.values())).kind
    return "text" if run.classes else ""  # an earlier version has written no such file


def made(recorded: Recorded) -> Table | None:
    """Returns the table of command, time, hardware and versions. None if the run has no record."""
    head = recorded.head
    if not head:
        return None
    versions = ", ".join(f"{name} {version}" for name, version in dict(head["versions"]).items())
    rows = [
        *([["command", str(head["command"])]] if head["command"] else []),
        ["started", str(head["started"]).replace("T", " ").replace("Z", " UTC")],
        ["hardware", str(head["hardware"])],
        ["versions", versions],
        ["run", recorded.run.label],
    ]
    if head["since"] > 1:
        rows.append(["recorded", f"from round {int(head['since'])} on, as an earlier version of flt began the run"])
    return Table("How the run was made", ["", ""], rows, left=2)


def titles(runs: Sequence[StoredRun]) -> list[str]:
    """Returns a short name for each run: its recipe, and the seed if seeds differ; its folder if names repeat."""
    seeds = {run.setting("seed") for run in runs}
    names = [str(run.setting("algo", run.label)) for run in runs]
    if len(seeds) > 1:
        names = [f"{name}, seed {run.setting('seed')}" for name, run in zip(names, runs, strict=True)]
    return [run.label if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]


def subtitle(run: StoredRun) -> str:
    """Returns what the run trained, on what, in a line."""
    data = run.setting("data.path") or run.setting("data.name", "")
    model = run.setting("model.path") or run.setting("model.name", "")
    parts = [
        f"{text(model)} on {text(data)}" if model and data else "",
        f"{run.setting('clients')} clients" if run.setting("data.name") != OWN else "",
        f"seed {run.setting('seed')}",
    ]
    return " · ".join(filter(None, parts))


def flat(run: StoredRun) -> dict[str, Any]:
    """Returns dotted key -> value, without the folders of this machine."""
    return dict(_walk(run.settings, ""))


def text(value: Any) -> str:
    """Returns a setting as a text, on one line."""
    value = last_name(value)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    line = " ".join(shown.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def shown_path(path: Path) -> str:
    """Returns a path from the working folder, or its last parts if it isn't inside."""
    inner = os.path.relpath(path)
    return Path(inner).as_posix() if not inner.startswith("..") else "/".join(path.absolute().parts[-3:])


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _walk(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, last_name(value)


def _order(key: str) -> int:
    return FIRST.index(key) if key in FIRST else len(FIRST) + ("." in key)


def _lines_of_card(folder: Path, path: str) -> str | None:
    """Returns the lines of Python in the card of a model. None if flt wrote no card, or somebody has changed it."""
    card = folder / CARD_FILE
    return lines_in(card.read_text(encoding="utf-8"), path) if is_own_card(card) else None
