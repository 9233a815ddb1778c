"""Entry point of the command line. Prints the command, runs it, and turns an error into one line and an exit code.

Each command is a module with a function ``run``, see :mod:`flt.cli.commands`. If a command needs torch, its ``run``
imports torch. This import takes seconds and therefore comes after the first printed line.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

import flt
from flt.cli import restart_after_crash
from flt.cli.commands import COMMANDS, module
from flt.core.errors import InputError, PeerDiedError, no_such
from flt.core.files import is_full, no_room
from flt.core.launcher_watch import WATCH
from flt.core.signals import number_of, raised_as_exceptions

HELP = ("-h", "--help", "help")
VERSION = ("--version", "version")
RESUMABLE = ("train", "sweep")
"""Commands that go on with a run after an interrupt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Words after ``flt`` on the command line. If None, the arguments of this process are used.

    Returns:
        The exit code: 0 after success; 1 if a process of the run has died; 2 after an InputError; after a signal,
        128 plus its number, as in shells: 129 after SIGHUP, 130 after Ctrl-C, 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # words of the command line may be no UTF-8
    command, rest = _command(words)
    # restart() replaces this process. The process may be replaced only if it runs nothing but this command line, and if
    # no launcher has started it.
    may_restart = arguments is None and not restart_after_crash.is_launched()
    with raised_as_exceptions():
        try:
            _quiet_libraries()
            _check_command(words, command)
            if COMMANDS[command].announced:
                _announce(words)
            code: int = module(command).run(rest)
            return code
        except (Exception, KeyboardInterrupt) as error:
            if may_restart and isinstance(error, PeerDiedError):
                restart_after_crash.restart(error, command, rest)
            reported = _report(error, command)
            if reported is None:
                raise
            return reported


def _command(words: list[str]) -> tuple[str, list[str]]:
    """Splits a command line into the command's name and its arguments.

    Without any words, the command is help. If the first word isn't a command, as in ``flt key=value``, the command is
    train.
    """
    if not words or any(word in HELP for word in words):
        return "help", [word for word in words if word not in HELP]
    if words[0] in VERSION:
        return "version", words[1:]
    if words[0] in COMMANDS:
        return words[0], words[1:]
    return "train", words


def _check_command(words: Sequence[str], command: str) -> None:
    """Checks that a command line without a command's name begins with a key.

    Raises:
        InputError: The first word is neither a command nor ``key=value``.
    """
    if command == "train" and words[0] != "train" and "=" not in words[0]:
        why = no_such("command", words[0], [name for name, known in COMMANDS.items() if known.summary])
        raise InputError.of("command", words[0], "a command that flt help lists, or key=value", why)


def _announce(words: Sequence[str]) -> None:
    """Prints the command line in a form that can be copied. The line is printed before slow imports such as torch.

    With ``--json``, nothing but JSON is printed.
    """
    if restart_after_crash.is_first() and "--json" not in words:
        print(f"flt {flt.__version__}: {shlex.join(['flt', *words])}", flush=True)


def _report(error: BaseException, command: str) -> int | None:
    """Prints an error as one line and returns the exit code. Returns None for an error that needs a traceback."""
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return 0
    if not restart_after_crash.is_first() and _is_reported_elsewhere(error):
        # The first process prints the error. If this process failed, the launcher would end the first process.
        return 0
    if isinstance(error, PeerDiedError):
        print(f"error: {error}; {error.advice}", file=sys.stderr)
        return 1
    if is_full(error):  # the disk became full while a library wrote a file
        error = no_room("a file")
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        if WATCH.launcher is None:  # the launcher of this process prints the line
            goes_on = "; the same command with resume=last goes on after the last finished round"
            print(f"interrupted{goes_on * (command in RESUMABLE)}", file=sys.stderr)
        return 128 + number_of(error)
    return None


def _is_reported_elsewhere(error: BaseException) -> bool:
    """Returns whether another process prints an error of a process that isn't the first one."""
    if isinstance(error, PeerDiedError):
        WATCH.wait()  # if the launcher has died, it prints nothing, and the watch prints a line and ends this process
        return WATCH.launcher is not None or os.environ.get("LOCAL_RANK", "0") != "0"
    return getattr(error, "reported", False)


def _quiet_libraries() -> None:
    """Suppresses the warnings and the advice that libraries print."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("flt").setLevel(logging.INFO if restart_after_crash.is_first() else logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|peft|tensorboard)\b.*")


def _discard_output() -> None:
    """Discards all further output, because a reader has closed the pipe, as in ``flt --help | head``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
