"""The command ``flt sweep``, which trains a run for every combination of values, and compares the runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flt.cli import restart_after_crash
from flt.core.errors import InputError
from flt.core.files import reported
from flt.core.imports import import_without_gc

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig

FOLDER = "compare"
"""Folder in the runs' root that holds the comparison of each sweep, in ``sweep_0``, ``sweep_1`` and so on."""


def run(overrides: Sequence[str]) -> int:
    """Checks every combination, trains one run after another, and then compares the runs.

    A run that fails, for example because its loss diverges, doesn't end the sweep: the error is printed, the other
    combinations are trained, and their runs are compared. The sweep ends with exit code 2 then.

    Raises:
        InputError: A key or value is wrong in one of the combinations.
    """
    from flt.run.compose import compose_config, expand

    combinations = expand(overrides)
    for combination in combinations:
        compose_config(combination)  # checks the names of keys and choices before torch is imported
    import_without_gc("flt.api", freeze=True)
    from flt.run.resume import configure

    configurations = [configure(combination) for combination in combinations]
    _check_engines(configurations)
    folders = _train(combinations, configurations)
    failed = len(combinations) - len(folders)
    if len(combinations) > 1 and restart_after_crash.is_first():
        if folders:
            _compare(folders, configurations[0].root)
        if failed:
            print(f"{failed} of {len(combinations)} runs failed; the lines that begin with error say why")
    return 2 if failed else 0


def _check_engines(configurations: Sequence[TrainConfig]) -> None:
    """Checks that all runs have the same engine and number of devices, if an engine launches several processes.

    The processes are launched once for the whole sweep. All runs must therefore have the same number of processes.

    Raises:
        InputError: The runs differ in engine or number of devices, and one of the engines launches processes.
    """
    if len({(cfg.engine["name"], cfg.devices) for cfg in configurations}) == 1:
        return
    launching = [cfg.engine["name"] for cfg in configurations if "nodes" in cfg.engine]
    if launching:
        raise InputError.of("engine", launching[0], "one engine and one number of devices in all of a sweep's runs")


def _train(combinations: Sequence[Sequence[str]], configurations: Sequence[TrainConfig]) -> list[Path]:
    """Trains the runs, and returns the folders of those that have finished.

    Raises:
        InputError: A run of several processes failed. The processes may then be in different states.
    """
    from flt.api import train

    folders = []
    for number, (combination, cfg) in enumerate(zip(combinations, configurations, strict=True), start=1):
        print(f"run {number} of {len(combinations)}: {shlex.join(combination)}", flush=True)
        try:
            folders.append(train(cfg).path)
        except InputError as error:
            if len(combinations) == 1 or "nodes" in cfg.engine:
                raise
            print(f"error: run {number} of {len(combinations)} ({shlex.join(combination)}): {error}", file=sys.stderr)
    return folders


def _compare(folders: Sequence[Path], root: str) -> None:
    """Prints the comparison of the runs, and writes its files to the next folder ``<root>/compare/sweep_N``."""
    from flt.reports.compare import compare

    found = compare(dict.fromkeys(folders))  # a run that has been resumed may be that of several combinations
    print()
    found.print()
    out = _next(Path(root) / FOLDER)
    found.save(out)
    print(f"comparison    {out}")


def _next(parent: Path) -> Path:
    """Creates and returns the next folder ``sweep_N``, which no other sweep has taken."""
    with reported("root", parent.parent, "a folder that can be written"):
        parent.mkdir(parents=True, exist_ok=True)
        number = len(list(parent.glob("sweep_*")))
        while True:
            try:
                (parent / f"sweep_{number}").mkdir()
                return parent / f"sweep_{number}"
            except FileExistsError:
                number += 1
