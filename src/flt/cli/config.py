"""The command ``flt config``, which prints a configuration as YAML."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from flt.cli.words import read_words
from flt.core.errors import InputError
from flt.core.formatting import printable_lines

HELP = """\
usage: flt config [key=value ...]      the configuration of flt train key=value
       flt config RUN                  the one that a run was trained with
       flt config RUN --command        the command that trains the same again

Prints the whole configuration as YAML, and nothing else, so that it can be
piped. Names, types and ranges are checked as flt train does it. RUN is a run's
folder, or last. --command prints the recipe and the keys that differ from it
instead of YAML; it works for RUN and for key=value.

  flt config algo=hafl local.lr=1e-3
  flt config algo=fl_tac data=dolly > fl_tac.yaml
  diff <(flt config algo=fedit) <(flt config algo=hafl)
  diff <(flt config runs/version_0) <(flt config last)
  eval "$(flt config last --command) seed=1" """.rstrip()


def run(arguments: Sequence[str]) -> int:
    """Prints a composed or a stored configuration.

    Raises:
        InputError: A key or value is wrong, there is no such run, or both are given.
    """
    from flt.run.configuration import as_yaml, config
    from flt.run.overrides import overrides_of

    if any("=" not in word and not word.startswith("--") for word in arguments):
        words = read_words("config", arguments, ["root"], ["command"])
        settings = config(run=words.runs[0], root=words.settings.get("root", "lightning_logs"))
    else:
        read_words("config", [word for word in arguments if word.startswith("--")], (), ["command"], (0, 0))
        settings = config([word for word in arguments if not word.startswith("--")])
    if "--command" in arguments:
        line = shlex.join(["flt", "train", *overrides_of(settings)])
        if line != printable_lines(line):  # such as the settings of a stranger's run, which could change the terminal
            raise InputError.of("config", "--command", "settings without control characters")
        print(line)
    else:
        print(as_yaml(settings), end="")
    return 0
