"""The command ``flt plan``, which says what a run would cost before it starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from flt.core.errors import InputError
from flt.core.imports import import_without_gc

HELP = """\
usage: flt plan [key=value ...] [--trial] [--json]

What a run with these keys would cost, before it starts: parameters that are
trained and sent, bytes of each round and client, examples and steps, memory,
disk, and why the run would be refused. The keys are those of flt train. The
data are read and divided, and nothing is trained or written.

  flt plan algo=hafl data=reviews.csv       counts bytes, estimates memory
  flt plan algo=flora rounds=100 --trial    and times a few steps here
  flt plan algo=fedavg clients=1000 --json  all numbers, also of each round

  --trial  trains a few steps on a few clients, and extrapolates the time of a
           round and of the run
  --json   prints JSON

Bytes: a dry run sends the run's own messages through the run's own server and
codec, with updates that no training has made. Bytes down are exact. Bytes up
are exact except for the digits of the metrics that clients report; the range is
given. Training also decides which components scores select (their ids have one
digit or two), how far quantised messages fill their budget (haflq), and
whether a client prunes itself (hetlora).

Memory: what the process takes with data and model loaded, plus the server's
state and sums, plus gradients, optimiser and copies of a fit, plus what
autograd keeps of a batch of the longest examples, found without computing it.

A run that would be refused ends the command with exit code 2, and a line for
each reason."""
FLAGS = ("--trial", "--json")


def run(arguments: Sequence[str]) -> int:
    """Prints the plan of a run. Returns 2 if the run would be refused.

    Raises:
        InputError: A key or value is wrong, or a flag is unknown.
    """
    flags = [word for word in arguments if word.startswith("-")]
    if unknown := [flag for flag in flags if flag not in FLAGS]:
        raise InputError.of("plan", unknown[0], FLAGS)
    overrides = [word for word in arguments if word not in flags]
    from flt.run.compose import compose_config

    compose_config(overrides)  # checks the names of keys and choices before torch is imported
    import_without_gc("flt.api", freeze=True)
    from flt.api import plan
    from flt.run.planning.table import show

    planned = plan(overrides, trial="--trial" in flags)
    if "--json" in flags:
        print(json.dumps(planned.as_dict(), indent=2))
    elif not planned.refused:
        show(planned)
    for reason in planned.refused:
        print(f"error: {reason}", file=sys.stderr)
    return 2 if planned.refused else 0
