"""Arguments of the commands that work on runs: names of runs, ``key=value`` settings, and flags such as ``--json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from flt.core.errors import InputError, nearest

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a command line, by kind.

    Attributes:
        runs: Words that are neither settings nor flags: folders of runs, or ``last``.
        settings: Key -> value, as written.
        flags: Flags, without their dashes.
    """

    runs: tuple[str, ...]
    settings: dict[str, str]
    flags: frozenset[str]

    def options(self, kind: type[Options]) -> Options:
        """Returns a dataclass with those settings that are among its fields. The others have their defaults.

        Raises:
            InputError: A value has the wrong type, or the dataclass refuses it.
        """
        from flt.core.typed import typed

        names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # any dataclass
        built: Any = typed(kind, {name: self.settings[name] for name in names if name in self.settings}, "")
        return built

    def overrides(self, prefix: str) -> list[str]:
        """Returns the settings whose key is the prefix or begins with it and a dot, as they were written."""
        return [
            f"{key}={value}" for key, value in self.settings.items() if key == prefix or key.startswith(f"{prefix}.")
        ]


def read_words(
    command: str,
    arguments: Sequence[str],
    keys: Sequence[str] = (),
    flags: Sequence[str] = (),
    runs: tuple[int, int | None] = (1, 1),
) -> Words:
    """Sorts the arguments of a command, and checks the names of settings and flags.

    Args:
        command: Name of the command, for the text of an error.
        arguments: Words after the command's name.
        keys: Keys that the command accepts. A key that ends with a dot accepts all keys that begin with it.
        flags: Flags that the command accepts, without their dashes.
        runs: Smallest and largest number of runs. None: as many as one likes.

    Raises:
        InputError: A key or flag is unknown or given twice, or there are too few or too many runs.

    Example:
        >>> read_words("predict", ["last", "out=p.csv", "--json"], ["out"], ["json"])
        Words(runs=('last',), settings={'out': 'p.csv'}, flags=frozenset({'json'}))
    """
    named, settings, given = list[str](), dict[str, str](), set[str]()
    for word in arguments:
        if word.startswith("--"):
            if word.removeprefix("--") not in flags:
                allowed = [f"--{flag}" for flag in flags] or "no flags"
                raise InputError.of(command, word, allowed, nearest(word, allowed) if flags else "")
            given.add(word.removeprefix("--"))
        elif "=" in word and "/" not in word.partition("=")[0]:
            key, _, value = word.partition("=")
            if not any(key == allowed or (allowed.endswith(".") and key.startswith(allowed)) for allowed in keys):
                names = [f"{key}..." if key[-1] == "." else f"{key}=" for key in keys]
                raise InputError.of(command, word, names, nearest(key, keys))
            if key in settings:
                raise InputError.of(command, word, f"{key} only once")
            settings[key] = value
        else:
            named.append(word)
    least, most = runs
    if len(named) < least or (most is not None and len(named) > most):
        wanted = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        why = "" if named else "no run is named"
        raise InputError.of(command, " ".join(named), f"{wanted} of: a run's folder, or last", why)
    return Words(tuple(named), settings, frozenset(given))
