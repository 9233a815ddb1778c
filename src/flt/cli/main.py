"""The command line: ``flt train key=value``, ``flt sweep key=a,b``, ``flt cache``.

Heavy imports wait until the first line is printed.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

import flt
from flt.core.errors import InputError, PeerDiedError, Terminated
from flt.core.files import is_full, is_path, last_name, no_room
from flt.core.imports import import_without_gc
from flt.run.conf_groups import choices, config_folder, groups

USAGE = """usage: flt [train] [key=value ...]     one run; flt key=value means train too
       flt sweep key=a,b [key=value ...]     every combination of comma-separated values, one run each
       flt cache [clear [kind]]              what is kept on disk, by kind, and removing it

  flt train algo=hafl                        the main job on the embedded default
  flt train algo=fl_tac grouping.k=2         parts and their settings by name
  flt train algo=hafl resume=last            go on with the newest run

Parts and data, each a choice of <group>=<name>:
{groups}
Every key is explained in {train}"""
INTERRUPTED, TERMINATED = 130, 143
"""128 and the number of the signal, as shells count."""
RESTARTS, MOST_RESTARTS = "FLT_RESTARTS", 3
QUOTES = "'\""
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What Lightning's launcher leaves in the environment."""
EXTERNAL = ("RANK", "SLURM_PROCID", *LAUNCHED)
"""What other launchers leave, and who starts one process on each of several machines."""
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0, 1 where a process of the run has died, 2 for a mistake in the input, 130 for an interrupt, 143
        where the process was asked to end.
    """
    command, rest = _command(list(sys.argv[1:] if arguments is None else arguments))
    if command == "help":
        print(_usage())
        return 0
    if command == "version":
        print(flt.__version__)
        return 0
    _quiet_libraries()
    first = _is_first()
    # a process of its own, and the one that starts the others: nobody else would replace them
    ours = arguments is None and not any(os.environ.get(name) for name in EXTERNAL)
    if first:
        print(f"flt {flt.__version__}  {command} {_shown(rest)}".rstrip(), flush=True)
    try:
        return COMMANDS[command](rest)
    except (Exception, KeyboardInterrupt) as error:
        if not first and getattr(error, "reported", False):
            return 0  # the first process says it; another exit code would have the launcher kill it before
        if isinstance(error, PeerDiedError):
            if not first:
                return 0
            if ours:
                _go_on(error, command, rest)
            print(f"error: {error}; the same command with resume=last goes on", file=sys.stderr)
            return 1
        if is_full(error):  # for a library's file
            error = no_room("a file")
        if isinstance(error, InputError):
            print(f"error: {error}", file=sys.stderr)
            return 2
        if isinstance(error, KeyboardInterrupt):
            said = "interrupted; the same command with resume=last goes on after the last finished round"
            print(said, file=sys.stderr)
            return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        raise


def _go_on(error: PeerDiedError, command: str, rest: Sequence[str]) -> None:
    """Starts anew after the last checkpoint, with a process in the place of each, unless that happens too often."""
    restarts = int(os.environ.get(RESTARTS, "0")) + 1
    if command != "train" or restarts > MOST_RESTARTS or not error.folder:
        return
    said = f"a process has died and is replaced ({restarts} of at most {MOST_RESTARTS} times)"
    print(said, file=sys.stderr, flush=True)
    for name in LAUNCHED:  # what the launcher has left would make the new process one of the old ones
        os.environ.pop(name, None)
    os.environ[RESTARTS] = str(restarts)
    kept = [override for override in rest if not override.startswith("resume=")]
    quoted = error.folder.replace("'", "\\'")
    os.execv(sys.executable, [sys.executable, "-m", "flt", command, *kept, f"resume='{quoted}'"])


def _shown(overrides: Sequence[str]) -> str:
    """What was given, of paths the last name: what is printed may become a log that others read."""
    shown = []
    for key, equals, value in (override.partition("=") for override in overrides):
        whole = value.strip(QUOTES)
        parts = [whole] if is_path(whole) else whole.split(",")  # of a sweep, which may be paths too
        bare = [last_name(its.strip(QUOTES)) if is_path(its.strip(QUOTES)) else its for its in parts]
        shown.append(f"{key}{equals}{','.join(bare)}")
    return " ".join(shown)


def _is_first() -> bool:
    """Whether this is the process of a run that shows and writes, by what launchers leave in the environment."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def _usage() -> str:
    lines = [f"  {group:<11} {', '.join(choices(group))}" for group in groups()]
    return USAGE.format(groups="\n".join(lines), train=config_folder() / "train.yaml")


def _command(arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments or any(argument in ("-h", "--help", "help") for argument in arguments):
        return "help", []
    if arguments[:1] in (["--version"], ["version"]):
        return "version", []
    if arguments[0] in COMMANDS:
        return arguments[0], arguments[1:]
    return "train", arguments


def _train(overrides: Sequence[str]) -> int:
    import_without_gc("flt.api")
    from flt.api import train
    from flt.run.resume import configure

    train(configure(overrides))
    return 0


def _sweep(overrides: Sequence[str]) -> int:
    """Every combination is checked before the first one runs."""
    from flt.api import train
    from flt.core import cache
    from flt.run.compose import expand
    from flt.run.resume import configure

    combinations = expand(overrides)
    configurations = [configure(combination) for combination in combinations]
    if len({(cfg.engine["name"], cfg.devices) for cfg in configurations}) > 1:
        several = [cfg.engine["name"] for cfg in configurations if "nodes" in cfg.engine]
        if several:
            raise InputError.of("engine", several[0], "one engine and one number of devices in all of a sweep's runs")
    for number, (combination, cfg) in enumerate(zip(combinations, configurations, strict=True), start=1):
        print(f"run {number} of {len(combinations)}: {_shown(combination)}", flush=True)
        train(cfg)
        cache.release()  # the next run may need the room
    return 0


def _cache(arguments: Sequence[str]) -> int:
    from flt.cli import cache as cache_cli

    cache_cli.run(arguments)
    return 0


COMMANDS = {"train": _train, "sweep": _sweep, "cache": _cache}


def _quiet_libraries() -> None:
    """A user's terminal shows our lines, not the libraries' advice."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("flt").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|peft|tensorboard)\b.*")
