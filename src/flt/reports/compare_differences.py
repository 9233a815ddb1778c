"""Tables of the settings in which methods or problems differ."""

from __future__ import annotations

from collections.abc import Sequence

from flt.reports import compare_settings as keys
from flt.reports.compare_runs import Method
from flt.reports.compare_settings import Settings
from flt.reports.compare_tables import Cell, Grid, View

LONGEST = 26
"""Largest number of characters of a value in a table, of which the terminal has 80."""


def settings_grid(view: View) -> Grid | None:
    """Returns the settings in which the methods differ beside the recipe, with their values. None if there are none."""
    beside, _ = differences_of_settings(view.methods)
    if not beside:
        return None
    names = [method.label for method in view.methods]
    title = "the methods differ in more than their recipe"
    rows = _by_value(beside, [method.settings for method in view.methods], names)
    return Grid(title, ["setting", "value", "methods"], rows, names=3)


def own_differences(view: View) -> str:
    """Returns a line that names the settings in which the recipes themselves differ. Empty if there are none."""
    _, own = differences_of_settings(view.methods)
    return f"the recipes differ in: {', '.join(keys.named(key) for key in own)}" if own else ""


def differences_of_settings(methods: Sequence[Method]) -> tuple[list[str], list[str]]:
    """Returns the keys in which methods differ: those that somebody has set, and those that the recipes set."""
    settings = [method.settings for method in methods]
    differ = keys.without_consequences(keys.differing(settings, "method"), settings)
    differ = [key for key in differ if key != "algo"]
    beside = [key for key in differ if any(_is_changed(method, key) for method in methods)]
    return beside, [key for key in differ if key not in beside]


def _is_changed(method: Method, key: str) -> bool:
    recipe = keys.of_recipe(method.recipe)
    return keys.identity(method.settings.get(key)) != keys.identity(recipe.get(key))


def problems_grid(views: Sequence[View]) -> Grid | None:
    """Returns the settings in which the problems differ. None if all runs have the same problem."""
    settings = [view.problem.settings for view in views]
    differ = keys.differing(settings, "problem")
    if not differ:
        return None
    names = [str(number) for number in range(1, len(views) + 1)]
    title = "settings in which the problems differ"
    said = [*map(_said_by_recipe, dict.fromkeys(method.recipe for view in views for method in view.methods))]
    caption = " ".join([*filter(None, said), "To compare methods, give all runs the same values of these settings."])
    rows, reasons = _by_value(differ, settings, names), map(keys.reason, differ)
    for row in rows:
        row.append(Cell(next(reasons) if row[0].text else ""))  # the first row of a key has its name
    return Grid(title, ["setting", "value", "problems", "what it fixes"], rows, caption, names=4)


def _said_by_recipe(name: str) -> str:
    """Returns a sentence with the settings of the problem that a recipe sets itself. Empty if there are none."""
    recipe, default = keys.of_recipe(name), keys.of_recipe(keys.DEFAULT)
    changed = [key for key in keys.differing([default, recipe], "problem") if key in recipe] if recipe else []
    return (
        f"{name} sets {' '.join(f'{keys.named(key)}={keys.shown(recipe[key])}' for key in changed)}." if changed else ""
    )


def _by_value(differ: Sequence[str], settings: Sequence[Settings], names: Sequence[str]) -> list[list[Cell]]:
    rows = []
    for key in differ:
        groups: dict[str, list[str]] = {}
        for text, name in zip(keys.values_of(key, settings), names, strict=True):
            groups.setdefault(text, []).append(name)
        for number, (text, some) in enumerate(zip(_shortened(list(groups)), groups.values(), strict=True)):
            rows.append([Cell("" if number else keys.named(key)), Cell(text), Cell(", ".join(some))])
    return rows


def _shortened(texts: Sequence[str]) -> list[str]:
    """Returns texts with an ellipsis in the middle of long ones, unless they would look the same then.

    Example:
        >>> _shortened(["{digit:{name:digits},parity:{name:digits}}", "null"])
        ['{digit:{name…name:digits}}', 'null']
    """
    half = LONGEST // 2 - 1
    short = [text if len(text) <= LONGEST else f"{text[:half]}…{text[-half - 1 :]}" for text in texts]
    return short if len(set(short)) == len(set(texts)) else list(texts)
