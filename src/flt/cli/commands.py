"""Table of the commands. Each command is a module of the same name, which is imported only when the command runs."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType


@dataclasses.dataclass(frozen=True)
class Command:
    """What the overview, the completion and the entry point know of a command.

    A command's module has a function ``run``, which gets the words after the command's name and returns the exit code.
    The module also has a text ``HELP``, unless :mod:`flt.cli.help` makes the text from conf/.

    Attributes:
        usage: Words after ``flt`` in the overview.
        summary: What the command does, in a few words. Empty if the command isn't in the overview.
        announced: Whether the command line is printed first. False for commands whose output may be piped elsewhere.
        words: Words that the shell completes after the command's name: flags and names, but no keys.
        keys: Keys that the shell completes, such as ``out``. Empty: all keys of ``flt train``, unless there are words.
        takes_runs: Whether the command's arguments are runs' folders.
    """

    usage: str
    summary: str
    announced: bool = False
    words: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    takes_runs: bool = False


COMMANDS = {
    "train": Command("[train] [key=value ...]", "one run; flt key=value means train too", announced=True),
    "sweep": Command("sweep key=a,b [key=value ...]", "a run for every combination of values", announced=True),
    "cache": Command("cache [clear [kind]]", "what is kept on disk, and removing it", announced=True, words=("clear",)),
    "report": Command(
        "report RUN... [out=report.html]", "one HTML page that shows or compares runs", keys=("out",), takes_runs=True
    ),
    "completion": Command("completion bash|zsh|fish", "a script that completes words", words=("bash", "zsh", "fish")),
    "help": Command("help [command]", ""),
    "version": Command("version", "the version of flt"),
}


def module(name: str) -> ModuleType:
    """Imports the module of a command."""
    assert name in COMMANDS, name
    return importlib.import_module(f"flt.cli.{name}")
