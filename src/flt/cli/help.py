"""The command ``flt help``, and ``--help`` after any command. The comments in conf/ explain the keys and choices."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from flt.cli import conf_comments
from flt.cli.commands import COMMANDS, module
from flt.cli.conf_comments import Key
from flt.core.errors import InputError
from flt.run.conf_groups import choices, config_folder, groups

WIDTH, COLUMN = 80, 26
"""Number of characters in a line, and position at which the second column begins."""

OVERVIEW = """\
flt: federated fine-tuning for PyTorch Lightning

{commands}

  flt train algo=hafl                     the main job on the embedded default
  flt train algo=fl_tac grouping.k=2      parts and their settings by name
  flt train algo=hafl resume=last         go on with the newest run

Choices of each part, to be given as <group>=<choice>:
{groups}

flt train --help explains every key and choice, flt train algo=hafl --help one."""

TRAIN = """\
usage: flt train [key=value ...]
       flt train <group>=<choice> --help    explains that choice alone

One run, whose results go to <root>/<name>/version_N. Below are all keys with
their defaults. A list is written as 'ranks=[2,4]', and null means nothing."""

SWEEP = """\
usage: flt sweep key=a,b [key=value ...]
       flt sweep <group>=<choice> --help    explains that choice alone

A run for every combination of comma-separated values, each in a folder of its
own. All combinations are checked before the first run starts. A run that fails
doesn't end the sweep. At the end, the runs are compared as by flt compare, and
the tables and figures are written to <root>/compare/sweep_N.

  flt sweep algo=hafl,fedit seed=0,1      four runs
  flt sweep 'seed=range(0,5)'             five runs
  flt sweep 'ranks=[2,4],[8]'             two runs: a list is one value
  flt sweep seed=0,1 'logger=[csv,wandb]' two runs, each with two loggers

Below are all keys with their defaults."""

CACHE = """\
usage: flt cache                shows every entry with its size and last use
       flt cache clear          removes all entries that no run uses
       flt cache clear <kind>   removes the entries of one kind

Kinds are {kinds}. Entries are made again when they are needed.
The cache lies in $FLT_CACHE, else in $XDG_CACHE_HOME/flt, else in ~/.cache/flt.
Keys of flt train:
"""


def run(arguments: Sequence[str]) -> int:
    """Prints the help of a command, or of a choice such as ``algo=hafl``. Without arguments, prints an overview.

    Raises:
        InputError: There is no such command or choice.
    """
    print("\n".join(_lines(list(arguments))))
    return 0


def _lines(arguments: list[str]) -> Iterator[str]:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if not arguments:
        yield overview()
    elif command == "cache":
        yield CACHE.format(kinds=_kinds())
        yield from _keys([key for key in conf_comments.sections()["cache"] if key.name.startswith("cache.")])
    elif command in ("train", "sweep"):
        yield from _of_choices(rest) or _of_keys(TRAIN if command == "train" else SWEEP)
    elif "=" in command:
        yield from _of_choices(arguments) or _of_keys(TRAIN)
    elif command not in COMMANDS:
        raise InputError.of("help", command, [name for name, about in COMMANDS.items() if about.summary])
    else:
        yield module(command).HELP


def overview() -> str:
    """Returns the overview, which shows the usage of all commands and the choices of each config group."""
    order = sorted(conf_comments.defaults(), key=lambda group: group != "algo")
    listed = [_wrapped(f"  {group}", ", ".join(choices(group)), 20) for group in order]
    return OVERVIEW.format(commands="\n".join(_usages()), groups="\n".join(line for lines in listed for line in lines))


def _usages() -> Iterator[str]:
    """Yields a line for each command."""
    before = "usage: flt "
    for about in COMMANDS.values():
        if about.summary:
            yield from _wrapped(f"{before}{about.usage}", about.summary, 42)
            before = "       flt "


def _kinds() -> str:
    from flt.core.cache_folders import KINDS

    return ", ".join(KINDS)


def _of_choices(overrides: Sequence[str]) -> list[str]:
    """Returns the lines that explain the choices among the overrides, such as ``algo=hafl``.

    The result is empty if the overrides contain no choice.

    Raises:
        InputError: A config group has no such choice.
    """
    lines: list[str] = []
    for group, _, choice in (override.partition("=") for override in overrides):
        if group not in groups():
            continue
        if choice not in choices(group):
            raise InputError.of(group, choice, choices(group))
        lines += [*([""] if lines else []), *_of_choice(group, choice)]
    return lines


def _of_choice(group: str, choice: str) -> Iterator[str]:
    """Yields the opening comment of a choice's file, and the keys of the choice."""
    path = config_folder() / group / f"{choice}.yaml"
    yield f"{group}={choice}"
    yield ""
    yield from (f"  {line}".rstrip() for line in conf_comments.head(path))
    if group in conf_comments.RECIPES:
        yield from ("", "It sets:")
        yield from (f"  {key}={value}" for key, value in conf_comments.settings(path))
    elif keys := list(conf_comments.choice_keys(group, choice)):
        yield ""
        yield from _keys(keys)


def _of_keys(usage: str) -> Iterator[str]:
    """Yields the usage, the recipes, the sections of conf/train.yaml, and the other config groups, with all keys."""
    yield usage
    for group in conf_comments.RECIPES:
        yield from _of_group(group)
    for section, keys in conf_comments.sections().items():
        meaning = conf_comments.section_meaning(section)
        yield from ("", f"{section}: {meaning}".removesuffix(": ") if section else "Keys of the run")
        yield from _keys(keys)
    for group in conf_comments.defaults():
        if group not in conf_comments.RECIPES:
            yield from _of_group(group)


def _of_group(group: str) -> Iterator[str]:
    yield from ("", f"{group}=<choice>, {conf_comments.defaults()[group]} by default")
    for choice in choices(group):
        yield from _wrapped(f"    {choice}", conf_comments.summary(group, choice))
    yield from _keys(conf_comments.group_keys(group))


def _keys(keys: Sequence[Key]) -> Iterator[str]:
    for key in keys:
        some = key.choices and len(key.choices) < _holders(key)
        only = f" [{', '.join(key.choices)}]" if some else ""
        yield from _wrapped(f"  {key.name}={key.default}", f"{key.meaning}{only}".strip())


def _holders(key: Key) -> int:
    """Returns the number of choices in the key's config group that have at least one key."""
    group = key.name.partition(".")[0]
    return len({choice for other in conf_comments.group_keys(group) for choice in other.choices})


def _wrapped(left: str, right: str, column: int = COLUMN) -> list[str]:
    """Returns lines with two columns, ``left`` and ``right``. If ``left`` is too long, ``right`` begins below it."""
    lines = textwrap.wrap(right, WIDTH - column, break_long_words=False, break_on_hyphens=False)
    if len(left) > column - 2 or not lines:
        return [left, *(" " * column + line for line in lines)]
    return [left.ljust(column) + lines[0], *(" " * column + line for line in lines[1:])]
