"""Sorts runs into problems and methods. The runs of a method differ only in their seed.

Runs are comparable only if they solve the same problem (see :mod:`flt.reports.compare_settings`). Runs that can't be
compared are left out, and a note says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flt.core.errors import InputError
from flt.core.files import expand_user
from flt.reports import compare_settings as keys
from flt.reports.compare_settings import Settings
from flt.run.stored import METRICS, OWN, StoredRun, find_run, label_of, read_run, runs_below

LISTED = 6
"""Largest number of runs that a note lists."""


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs with the same settings and different seeds.

    Attributes:
        label: Name of the recipe, and the settings in which other methods of the same recipe differ.
        recipe: Name of the recipe.
        settings: Dotted key -> value.
        runs: Seed -> run, in the order of the seeds.
    """

    label: str
    recipe: str
    settings: Settings
    runs: dict[int, StoredRun]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs, sorted."""
        return list(self.runs)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Methods that were applied to the same problem.

    Attributes:
        settings: Settings of one of the runs. Those of the problem are the same in all of them.
        methods: The methods, in the order in which their runs were named.
    """

    settings: Settings
    methods: tuple[Method, ...]

    @property
    def name(self) -> str:
        """Short description of the problem, such as ``digits, 10 clients, dirichlet, 10 rounds``."""
        s = self.settings
        data = "own data" if s.get("data.name") == OWN else keys.shown(s.get("data.path") or s.get("data.name", "?"))
        if s.get("data.subset"):
            data += f" {keys.shown(s['data.subset'])}"
        own = s.get("data.name") == OWN  # its clients and partition are those of the caller
        clients = [] if own else [f"{keys.shown(s.get('clients'))} clients", keys.shown(s.get("partition.kind"))]
        rounds = keys.shown(s.get("rounds"))
        return ", ".join([data, *clients, f"{rounds} round{'s' * (rounds != '1')}"])


@dataclasses.dataclass(frozen=True)
class _Read:
    """A run with its settings, and the keys that it lacks because another version wrote it."""

    run: StoredRun
    recipe: str
    settings: dict[str, Any]
    lacking: list[str]

    @property
    def seed(self) -> int:
        return int(self.settings[keys.REPETITION])

    def identity(self, role: str) -> str:
        """Returns a text that is the same for all runs with the same settings of a role."""
        return keys.identity(
            sorted((key, keys.identity(v)) for key, v in self.settings.items() if keys.role(key) == role)
        )


def read_runs(runs: Iterable[str | Path], root: str | Path = "lightning_logs") -> tuple[list[StoredRun], list[str]]:
    """Reads runs, and all runs in those of the folders that aren't runs themselves.

    Returns:
        The runs, each once, and notes about runs in such folders that can't be read.

    Raises:
        InputError: A run that is named itself can't be read, no run can, or there is no run in a folder.
    """
    found: dict[Path, StoredRun] = {}
    notes, refused = list[str](), None
    for run in runs:
        inside = [] if str(run) == "last" else [path for path in runs_below(run) if path != expand_user(run)]
        if not inside:
            read = _with_seed(find_run(run, root))
            found[read.folder.resolve()] = read
        for path in inside:
            try:
                found.setdefault(path.resolve(), _with_seed(path))
            except InputError as error:
                notes.append(f"left out, as it can't be read: {keys.plain(label_of(path))} ({error})")
                refused = error
    if refused is not None and not found:
        raise refused
    return list(found.values()), notes


def _with_seed(folder: Path) -> StoredRun:
    run = read_run(folder)
    seed = run.setting(keys.REPETITION)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError.of("seed", seed, "an integer", f"so says the config.yaml of {run.label}")
    return run


def sort_runs(runs: Sequence[StoredRun]) -> tuple[list[Problem], list[str]]:
    """Returns the problems with their methods, and notes about what was left out or assumed.

    Raises:
        InputError: No run has finished.
    """
    finished, notes = _finished(runs)
    read = [_Read(run, keys.recipe_of(run), *keys.settings_of(run)) for run in finished]
    notes += _versions(read)
    newest, repeated = _newest(read)
    notes += repeated
    problems = [_problem(group) for group in _grouped(newest, "problem")]
    if any(problem.settings.get("data.name") == OWN for problem in problems):
        notes.append("runs of flt.fit don't record their data and clients; that these are the same isn't checked")
    return problems, notes


def _finished(runs: Sequence[StoredRun]) -> tuple[list[StoredRun], list[str]]:
    """Leaves out runs that haven't finished: a method's mean over seeds would have runs of several lengths."""
    finished, left = [], []
    for run in runs:
        rounds = run.setting("rounds", 0)
        if run.lacks_rounds:
            left.append(f"{keys.plain(run.label)} ({METRICS} is empty)")
        elif run.exported is None and (not run.history or (isinstance(rounds, int) and len(run.history) < rounds)):
            left.append(f"{keys.plain(run.label)} ({len(run.history)} of {keys.shown(rounds)} rounds)")
        elif not run.history:
            left.append(f"{keys.plain(run.label)} (no metrics.csv)")
        else:
            finished.append(run)
    if not finished:
        raise InputError.of("compare", _listed(left), "runs of which at least one has finished")
    return finished, [f"left out, as they haven't finished: {_listed(left)}"] if left else []


def _versions(read: Sequence[_Read]) -> list[str]:
    """Returns a note about runs of other versions: they lack settings, or have settings that this version lacks."""
    notes = []
    older = [found for found in read if found.lacking]
    if older:
        lacking = _listed(dict.fromkeys(key for found in older for key in found.lacking))
        who = _listed(keys.plain(found.run.label) for found in older)
        notes.append(f"of another version of flt: {who}; they lack {lacking}, for which the default is taken")
    foreign = [found for found in read if not keys.of_recipe(found.recipe)]
    if foreign:
        who = _listed(f"{keys.plain(found.run.label)} ({keys.plain(found.recipe)})" for found in foreign)
        notes.append(f"this version of flt doesn't have the recipes of: {who}")
    return notes


def _newest(read: Sequence[_Read]) -> tuple[list[_Read], list[str]]:
    """Keeps the newest run of each method, problem and seed."""
    kept: dict[tuple[str, ...], list[_Read]] = {}
    for found in read:
        kept.setdefault((found.identity("problem"), found.identity("method"), str(found.seed)), []).append(found)
    chosen = [max(group, key=_written) for group in kept.values()]
    several = [found for found, group in zip(chosen, kept.values(), strict=True) if len(group) > 1]
    if not several:
        return chosen, []
    names = _listed(f"{keys.plain(found.run.label)} (seed {found.seed})" for found in several)
    return chosen, [f"repeated runs, of which only the newest counts: {names}"]


def _written(found: _Read) -> tuple[float, int]:
    version = found.run.folder.absolute().name.removeprefix("version_")
    return (found.run.folder / METRICS).stat().st_mtime, int(version) if version.isdigit() else 0


def _problem(read: Sequence[_Read]) -> Problem:
    methods = _grouped(read, "method")
    labels = _labels([group[0] for group in methods])
    return Problem(
        read[0].settings,
        tuple(
            Method(label, group[0].recipe, group[0].settings, {f.seed: f.run for f in sorted(group, key=_seed)})
            for label, group in zip(labels, methods, strict=True)
        ),
    )


def _labels(read: Sequence[_Read]) -> list[str]:
    """Returns the recipe's name of each method, with the settings that tell it from others of the same recipe."""
    labels: list[str] = []
    for found in read:
        same = [other.settings for other in read if other.recipe == found.recipe]
        differ = keys.without_consequences(keys.differing(same, "method"), same)
        said = [f"{keys.named(key)}={keys.values_of(key, same)[same.index(found.settings)]}" for key in differ]
        label = " ".join([keys.plain(found.recipe), *said])
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")  # long values are cut off
    return labels


def _grouped(read: Sequence[_Read], role: str) -> list[list[_Read]]:
    groups: dict[str, list[_Read]] = {}
    for found in read:
        groups.setdefault(found.identity(role), []).append(found)
    return list(groups.values())


def _seed(found: _Read) -> int:
    return found.seed


def names_of_runs(problems: Iterable[Problem]) -> str:
    """Returns the short names of the runs of some problems."""
    return _listed(keys.plain(run.label) for p in problems for method in p.methods for run in method.runs.values())


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = [f"and {len(every) - LISTED} more"] if len(every) > LISTED else []
    return ", ".join([*every[:LISTED], *more])
