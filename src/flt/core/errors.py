"""Exceptions of flt. ``InputError`` reports every mistake of a user in one line."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in the input: a config key, a file, a data set, a client's update.

    The command line prints it as one line and exits with code 2.

    Example:
        >>> print(InputError.of("adapter.rank", 0, "an integer >= 1"))
        adapter.rank=0: allowed is an integer >= 1
    """

    @classmethod
    def of(cls, key: str, value: object, allowed: str | Iterable[object], why: str = "") -> InputError:
        """Builds ``key=value: why; allowed is ...`` on one line.

        Args:
            key: Config key or name of the wrong thing.
            value: Value that was given.
            allowed: Values that would have been accepted: a phrase, or the choices.
            why: Reason for the refusal, where the value alone doesn't explain it.
        """
        choices = allowed if isinstance(allowed, str) else ", ".join(map(str, allowed))
        reason = f"{why}; " if why else ""
        return cls(" ".join(f"{key}={value}: {reason}allowed is {choices}".split()))


def diverged(what: str, value: object, wanted: str) -> InputError:
    """Builds the line for numbers that training has made too large or not finite.

    Args:
        what: Name of the update or tensor.
        value: What was found.
        wanted: Numbers that would have been accepted.
    """
    return InputError.of(what, value, f"{wanted}; lower local.lr")


class PeerDiedError(RuntimeError):
    """Error for a run in which another process has died. The run can be resumed from its last checkpoint.

    Attributes:
        folder: Folder of the run.
    """

    folder = ""


class Terminated(KeyboardInterrupt):
    """Interrupt by SIGTERM, which schedulers send before they stop a machine."""
