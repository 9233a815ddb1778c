"""Table of the commands. Each command is a module of the same name, which is imported only when the command runs."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType


@dataclasses.dataclass(frozen=True)
class Command:
    """Description of a command for the overview, the completion and the entry point.

    A command's module has a function ``run``, which gets the words after the command's name and returns the exit code.
    The module also has a text ``HELP``, unless :mod:`flt.cli.help` makes the text from conf/.

    Attributes:
        usage: Words after ``flt`` in the overview.
        summary: What the command does, in a few words. Empty if the command isn't in the overview.
        announced: Whether the command line is printed first. False for commands whose output may be piped elsewhere.
        words: Words that the shell completes after the command's name: flags and names, but no keys.
        keys: Keys that the shell completes, such as ``out``. Empty: all keys of ``flt train``, unless there are words.
        takes_runs: Whether the command's arguments are runs' folders.
        takes_settings: Whether the command takes all keys of ``flt train`` besides its own words.
    """

    usage: str
    summary: str
    announced: bool = False
    words: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    takes_runs: bool = False
    takes_settings: bool = False


COMMANDS = {
    "train": Command("[train] [key=value ...]", "one run; flt key=value means train too", announced=True),
    "sweep": Command("sweep key=a,b [key=value ...]", "a run for every combination of values", announced=True),
    "plan": Command(
        "plan [key=value ...] [--trial] [--json]",
        "what a run would cost, before it starts",
        announced=True,
        words=("--trial", "--json"),
        takes_settings=True,
    ),
    "evaluate": Command(
        "evaluate RUN [data=...] [--json]",
        "accuracy, F1 and confusions on labelled data",
        words=("--json",),
        keys=("data", "split", "group", "task", "out", "batch_size", "device", "root", "base"),
        takes_runs=True,
    ),
    "predict": Command(
        "predict RUN data=... [out=...]",
        "the classes of new texts or images",
        keys=("data", "out", "probabilities", "group", "task", "split", "batch_size", "device", "root", "base"),
        takes_runs=True,
    ),
    "compare": Command(
        "compare RUN ... [key=value]",
        "methods over seeds: tables and figures",
        words=("--json",),
        keys=("metric", "target", "baseline", "out", "width", "root"),
        takes_runs=True,
    ),
    "report": Command(
        "report RUN ... [out=report.html]", "one HTML page that shows or compares runs", keys=("out",), takes_runs=True
    ),
    "merge": Command(
        "merge RUN out=folder [key=value]",
        "a run's adapters merged into whole models",
        announced=True,
        keys=("out", "group", "dtype", "base"),
        takes_runs=True,
    ),
    "generate": Command(
        'generate RUN prompt="..."',
        "a causal model's answers",
        words=("--interactive",),
        keys=(
            "prompt",
            "context",
            "field.",
            "raw",
            "prompts",
            "out",
            "set",
            "group",
            "temperature",
            "top_p",
            "top_k",
            "max_new_tokens",
            "seed",
            "batch_size",
            "device",
            "root",
            "base",
        ),
        takes_runs=True,
    ),
    "show": Command("show RUN [--json]", "a page about a run", words=("--json",), keys=("root",), takes_runs=True),
    "list": Command(
        "list [group|runs] [--json]", "recipes, parts, data, models; runs", words=("runs", "--json"), keys=("root",)
    ),
    "config": Command(
        "config [key=value ...]|RUN",
        "a configuration as YAML, or a run's",
        words=("--command",),
        takes_runs=True,
        takes_settings=True,
    ),
    "doctor": Command("doctor [--json]", "whether flt can run here", words=("--json",), keys=("root",)),
    "cache": Command("cache [clear [kind]]", "what is kept on disk, and removing it", announced=True, words=("clear",)),
    "completion": Command("completion bash|zsh|fish", "a script that completes words", words=("bash", "zsh", "fish")),
    "help": Command("help [command]", ""),
    "version": Command("version", "the version of flt"),
}


def module(name: str) -> ModuleType:
    """Imports the module of a command."""
    assert name in COMMANDS, name
    return importlib.import_module(f"flt.cli.{name}")
