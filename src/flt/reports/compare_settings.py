"""Roles of the settings: they define the problem that runs solve, the method that solves it, or neither.

This table is the one place that decides whether two runs can be compared. Each setting is in one of three roles:

- The problem is what a paper fixes before it compares methods: the examples, who holds them, the frozen model, how much
  each client trains, and what is measured. A recipe may set such a key too (FL-TAC sets ``jobs``), which doesn't make
  it a part of the method: numbers for different tasks or partitions say nothing about the methods.
- The place is where and how a run is written and executed. It doesn't change the metrics, apart from rounding.
- The method is everything else: the parts of the recipe, the adapter, the ranks that it gives to the clients, the
  optimiser, and whatever a later version adds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flt.core.errors import InputError
from flt.core.files import last_name
from flt.core.formatting import printable
from flt.run.stored import BEFORE, StoredRun

PROBLEM = {
    "data": "the examples",
    "model.name": "the frozen model",
    "model.path": "the frozen model",
    "model.package": "the frozen model",
    "model.random": "the frozen model",
    "model.quantise": "the frozen model",
    "model.max_length": "how much of a text is read",
    "partition": "who holds which examples",
    "clients": "who holds which examples",
    "jobs": "whether a model learns one task or all tasks of a client",
    "heads": "which tasks share their classes",
    "task_rounds": "in which rounds a task is there",
    "task_changes": "which jobs change their task, and when",
    "cohort": "who takes part in a round",
    "rounds": "how long is trained",
    "stop": "how long is trained",
    "local.steps": "how much a client trains in a round",
    "local.epochs": "how much a client trains in a round",
    "local.accumulate": "how much a client trains in a round",
    "batch_size": "how much a client trains in a round",
    "eval": "what is measured, and when",
    "faults": "which clients fail or attack",
    "min_updates": "which failures a round survives",
    "max_retries": "which failures a round survives",
    "client_timeout": "which failures a round survives",
    "fleet": "which devices the clients have",
}
"""Key, or section -> what it fixes of the problem."""
PLACE = {
    "name": "a folder's name",
    "root": "a folder's name",
    "resume": "a folder's name",
    "checkpoint": "what is written beside the metrics",
    "export": "what is written beside the metrics",
    "logger": "what is written beside the metrics",
    "report": "what is written beside the metrics",
    "cache": "what is kept for other runs",
    "threads": "chosen by a trial at the start",
    "engine": "chosen by a trial at the start",
    "eval.batch_size": "how many examples are evaluated at once",
    "eval.distributed": "an additional metric",
}
"""Key, or section -> why it doesn't matter for a comparison."""
METHOD = {"engine.name": "its time is compared"}
"""Exceptions inside of a section of another role."""
REPETITION = "seed"
DEFAULT = "fedit"
"""Recipe that sets nothing of the problem, so that its settings have the defaults of conf/train.yaml."""
MISSING = "not set"
LONGEST = 60
"""Largest number of characters of a value that is shown."""

Settings = Mapping[str, Any]


def role(key: str) -> str:
    """Returns the role of a setting: ``problem``, ``place``, ``repetition`` or ``method``.

    Example:
        >>> role("partition.alpha"), role("rule.pad"), role("eval.batch_size")
        ('problem', 'method', 'place')
    """
    if key == REPETITION:
        return "repetition"
    for name in (key, key.partition(".")[0]):  # a key's own role comes before that of its section
        for found, table in (("method", METHOD), ("problem", PROBLEM), ("place", PLACE)):
            if name in table:
                return found
    return "method"


def reason(key: str) -> str:
    """Returns what a key of the problem fixes."""
    return PROBLEM.get(key) or PROBLEM[key.partition(".")[0]]


def settings_of(run: StoredRun) -> tuple[dict[str, Any], list[str]]:
    """Returns dotted key -> value, and the keys that the run of an older version lacks, which have their defaults."""
    found, recipe = flat(run.settings), of_recipe(recipe_of(run))
    own = {str(section) for section, value in run.settings.items() if isinstance(value, dict)}
    missing = [key for key in recipe if key not in found and role(key) in ("problem", "method")]
    lacking = [key for key in missing if _fits(key, own, found, recipe)]
    return found | {key: flat(BEFORE).get(key, recipe[key]) for key in lacking}, lacking


def _fits(key: str, own: set[str], found: Settings, recipe: Settings) -> bool:
    """Returns whether the recipe's default of a missing key holds: choices of a part have keys of their own."""
    section = key.partition(".")[0]
    if section not in own:
        return True
    if section == "data":
        return "data.path" in found  # a user's own data have no settings
    return found.get(f"{section}.name") == recipe.get(f"{section}.name")


def recipe_of(run: StoredRun) -> str:
    """Returns the name of a run's recipe. Older versions wrote it only as the name of the run."""
    return str(run.setting("algo") or run.setting("name", "run"))


@functools.cache
def of_recipe(name: str) -> dict[str, Any]:
    """Returns all settings of a recipe of this version. Empty if there is no such recipe."""
    from omegaconf import OmegaConf

    from flt.run.compose import compose_config

    try:
        composed: Any = OmegaConf.to_container(compose_config([f"algo='{name}'"]))
    except InputError:
        return {}
    return flat(composed)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of all sections by dotted keys. Mappings inside of a section stay values."""
    found: dict[str, Any] = {}
    for section, value in settings.items():
        inner = {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {}
        found |= inner or {section: value}
    return found


def differing(settings: Sequence[Settings], of: str) -> list[str]:
    """Returns the keys of a role whose values aren't the same in all settings, in the order in which they appear."""
    keys = [key for key in dict.fromkeys(key for found in settings for key in found) if role(key) == of]
    return [key for key in keys if len({identity(found.get(key, MISSING)) for found in settings}) > 1]


def without_consequences(keys: Sequence[str], settings: Sequence[Settings]) -> list[str]:
    """Leaves out settings of parts that differ only because the choices of the part differ: they have other keys."""
    return [key for key in keys if not _follows(key, settings)]


def _follows(key: str, settings: Sequence[Settings]) -> bool:
    section, _, name = key.partition(".")
    choice = f"{section}.name"
    if name in ("", "name") or len({identity(found.get(choice)) for found in settings}) == 1:
        return False
    values = {(identity(found.get(choice)), identity(found.get(key, MISSING))) for found in settings}
    return len(values) == len({chosen for chosen, _ in values})


def named(key: str) -> str:
    """Returns the key as the command line has it: ``rule`` for ``rule.name``."""
    return key.removesuffix(".name")


def shown(value: Any) -> str:
    """Returns a value in one short line. Of a path, the last name is shown.

    Example:
        >>> shown([2, 4]), shown(None), shown("/data/me/reviews.csv")
        ('[2,4]', 'null', 'reviews.csv')
    """
    value = last_name(value)
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    return plain(text.replace('"', ""))


def plain(text: str) -> str:
    """Returns a text from a file on one line of at most LONGEST characters, with control characters escaped."""
    line = printable(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def values_of(key: str, settings: Iterable[Settings]) -> list[str]:
    """Returns the value of a key in each of the settings, as it is shown. Paths that differ are told apart."""
    values = [found.get(key, MISSING) for found in settings]
    texts = [shown(value) for value in values]
    if len(set(texts)) < len({identity(value) for value in values}):
        return [plain(str(value)) for value in values]
    return texts


def identity(value: Any) -> str:
    """Returns a text that is the same for equal values."""
    return json.dumps(value, default=str)
