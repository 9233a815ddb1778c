"""The command ``flt version``, which prints the version of flt."""

from __future__ import annotations

from collections.abc import Sequence

import flt

HELP = "usage: flt version"


def run(arguments: Sequence[str]) -> int:
    """Prints the version."""
    print(flt.__version__)
    return 0
