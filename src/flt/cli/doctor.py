"""The command ``flt doctor``, which says whether flt can run on this machine, and with what."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Sequence

from flt.cli.words import read_words
from flt.core.formatting import printable
from flt.run.check import MISSING, Check

HELP = """\
usage: flt doctor [--json] [root=folder]

Checks whether flt can run here: versions of Python and packages (a version
outside of those that flt is tested with is marked), CPU cores, threads and
GPUs, the cache and the folder of the runs with the space on their disks, the
folder of data files (FLT_DATA), Hugging Face's offline mode, and extras.
Nothing is downloaded, and no file stays. Each line says ok, note (flt can run)
or missing (flt can't), and what to do. The exit code is 1 if something is
missing, else 0. --json prints the same as one JSON object."""
WIDTH, LEFT = 80, 27


def run(arguments: Sequence[str]) -> int:
    """Prints the checks, each as soon as it is done.

    Returns:
        1 if something that flt needs is missing, else 0.

    Raises:
        InputError: An argument isn't known.
    """
    words = read_words("doctor", arguments, ["root"], ["json"], (0, 0))
    found = []
    for check in _checks(words.settings.get("root", "lightning_logs")):
        found.append(check)
        if "json" not in words.flags:
            print(_line(check), flush=True)
    healthy = all(check.state != MISSING for check in found)
    if "json" in words.flags:
        print(json.dumps({"can_run": healthy, "checks": [dataclasses.asdict(check) for check in found]}, indent=1))
    else:
        print("flt can run here" if healthy else "flt can't run here: see the lines that begin with missing")
    return 0 if healthy else 1


def _checks(root: str) -> Iterator[Check]:
    """Yields the checks, or the only one if a package that the checks themselves need can't be imported."""
    try:
        from flt.run.doctor import checks
    except Exception as error:  # a broken package can raise anything when it is imported
        found = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        yield Check("flt", "import", MISSING, found, "install the packages again, or flt in a new environment")
        return
    yield from checks(root)


def _line(check: Check) -> str:
    """Returns the line of a check, which is continued below if it is wider than a terminal."""
    text = printable(f"{check.found}; {check.advice}" if check.advice else check.found)
    lines = textwrap.wrap(text, WIDTH - LEFT, break_long_words=False, break_on_hyphens=False)
    begin = f"{check.state:<8}{printable(check.name)}"
    fits = len(begin) < LEFT - 1
    first = begin.ljust(LEFT) + lines.pop(0) if fits and lines else begin
    return "\n".join([first, *(" " * LEFT + line for line in lines)])
