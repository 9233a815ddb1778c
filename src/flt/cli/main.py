"""Entry point of the command line: prints the command, runs it, and turns errors into one line and an exit code.

Each command is a module with a function ``run``. Commands import torch themselves, after the first line is printed.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence

import flt
from flt.cli import cache, completion, help, restart_after_crash, sweep, train
from flt.core.errors import InputError, PeerDiedError, Terminated
from flt.core.files import is_full, no_room

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of shells: 128 plus the number of the signal."""
HELP = ("-h", "--help", "help")
VERSION = ("--version", "version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Words after ``flt``; None: those of this process.

    Returns:
        The exit code: 0; 1 if a process of the run has died; 2 for a mistake in the input; 130 for an interrupt; 143 if
        the process was asked to end.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = _command(words)
    # Only a process of its own, which no launcher started, may replace the processes of a run.
    may_restart = arguments is None and not restart_after_crash.is_launched()
    try:
        if command in ANNOUNCED:
            _announce(words)
        return COMMANDS[command](rest)
    except (Exception, KeyboardInterrupt) as error:
        if may_restart and isinstance(error, PeerDiedError):
            restart_after_crash.restart(error, command, rest)
        code = _report(error)
        if code is None:
            raise
        return code


def _command(words: list[str]) -> tuple[str, list[str]]:
    """Splits a command line into the command's name and its arguments; ``key=value`` alone means train."""
    if not words or any(word in HELP for word in words):
        return "help", [word for word in words if word not in HELP]
    if words[0] in VERSION:
        return "version", words[1:]
    if words[0] in COMMANDS:
        return words[0], words[1:]
    return "train", words


def _announce(words: Sequence[str]) -> None:
    """Prints the command so that it can be copied, before anything else is imported."""
    _quiet_libraries()
    if restart_after_crash.is_first():
        print(f"flt {flt.__version__}: {shlex.join(['flt', *words])}", flush=True)


def _report(error: BaseException) -> int | None:
    """Prints an error as one line and returns the exit code; None for an error that needs a traceback."""
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return 0
    is_first = restart_after_crash.is_first()
    if not is_first and (getattr(error, "reported", False) or isinstance(error, PeerDiedError)):
        return 0  # the first process reports it; the launcher would kill that one after any other exit code
    if isinstance(error, PeerDiedError):
        print(f"error: {error}; the same command with resume=last goes on", file=sys.stderr)
        return 1
    if is_full(error):  # while a library wrote a file
        error = no_room("a file")
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        hint = "interrupted; the same command with resume=last goes on after the last finished round"
        print(hint, file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    return None


def _version(arguments: Sequence[str]) -> int:
    print(flt.__version__)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train.run,
    "sweep": sweep.run,
    "cache": cache.run,
    "completion": completion.run,
    "help": help.run,
    "version": _version,
}
ANNOUNCED = ("train", "sweep", "cache")
"""Commands that begin by printing the command line. The output of the others is to be piped or read."""


def _quiet_libraries() -> None:
    """Keeps the advice of libraries off the user's terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("flt").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|peft|tensorboard)\b.*")


def _discard_output() -> None:
    """Stops writing to a pipe that its reader has closed, as ``flt --help | head`` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
