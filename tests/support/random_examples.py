"""How many random examples the slow tests try."""

from __future__ import annotations

import os


def share() -> float:
    """The share of the examples that are tried, from 0 to 1. ``.ci/run`` tries some of them, ``make test-all`` all."""
    return float(os.environ.get("FLT_EXAMPLES", "1"))
