"""Exceptions of flt. An ``InputError`` reports a mistake of the user in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Largest number of characters of each part of an error's line. What a file contains may be much longer."""


class InputError(ValueError):
    """Error for wrong input, such as a config key, a file, a data set or a client's update.

    The command line prints the error as one line and exits with code 2.

    Example:
        >>> print(InputError.of("adapter.rank", 0, "an integer >= 1"))
        adapter.rank=0: allowed is an integer >= 1
    """

    @classmethod
    def of(cls, key: str, value: object, allowed: str | Iterable[object], why: str = "") -> InputError:
        """Builds an error whose text is the line ``key=value: why; allowed is ...``.

        Args:
            key: Config key, or name of the wrong input.
            value: Value that was given.
            allowed: Description of the accepted values, or a list of them.
            why: Reason for the error. Empty if the value alone explains the error.
        """
        choices = allowed if isinstance(allowed, str) else ", ".join(map(str, allowed))
        reason = f"{_short(why)}; " if why else ""
        return cls(" ".join(f"{_short(key)}={_short(str(value))}: {reason}allowed is {_short(choices)}".split()))


def no_such(what: str, name: str, names: Iterable[str]) -> str:
    """Returns the reason for refusing an unknown name, with the known name that is the most like it, if one is.

    Example:
        >>> no_such("key", "device", ["rounds", "devices"])
        'there is no such key; the nearest is devices'
    """
    return "; ".join(filter(None, [f"there is no such {what}", nearest(name, names)]))


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns words with the known name that is the most like an unknown one. Empty if none is like it."""
    found = difflib.get_close_matches(name, list(names), 1)
    return f"the nearest is {found[0]}" if found else ""


def _short(text: str) -> str:
    """Shortens a text, and escapes control characters, with which a stranger's file could change the terminal."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode() for c in short)


class ModuleError(InputError):
    """Error of the user's module or callbacks, which would recur on every client. It ends the run in any case."""


class OtherRunError(InputError):
    """Error for a checkpoint or client state that another run wrote, or that belongs to another job."""


def diverged(what: str, value: object, wanted: str) -> InputError:
    """Builds the error for numbers that have become too large or not finite during training.

    Args:
        what: Name of the update or tensor that contains these numbers.
        value: Number that was found, or the error that this number caused.
        wanted: Description of the numbers that are accepted.
    """
    return InputError.of(what, value, f"{wanted}; lower local.lr")


class PeerDiedError(RuntimeError):
    """Error for a run in which another process has died. The run can be resumed from its last checkpoint.

    Attributes:
        folder: Folder of the run.
        advice: What the user can do.
    """

    folder = ""
    advice = "the same command with resume=last goes on"


class Terminated(KeyboardInterrupt):
    """Interrupt caused by SIGTERM. Job schedulers send this signal before they stop a machine."""


class HungUp(KeyboardInterrupt):
    """Interrupt caused by SIGHUP. A terminal sends this signal to its programs when it is closed."""
