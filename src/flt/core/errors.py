"""The one exception that a user's mistake raises, and how its single line is written."""

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
            key: The config key or the name of the thing at fault.
            value: What was given.
            allowed: What would have been accepted: a sentence, or the choices.
            why: What is wrong, where the value alone doesn't tell.
        """
        choices = allowed if isinstance(allowed, str) else ", ".join(map(str, allowed))
        reason = f"{why}; " if why else ""
        return cls(" ".join(f"{key}={value}: {reason}allowed is {choices}".split()))


class PeerDiedError(RuntimeError):
    """Another process of the run has died, and took nothing along that a checkpoint doesn't have.

    Attributes:
        folder: Of the run.
    """

    folder = ""


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM: what schedulers send before they take a machine away."""
