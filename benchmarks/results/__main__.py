"""``python -m benchmarks.results``, which ``make results`` calls."""

from __future__ import annotations

import sys

from benchmarks.results.cli import main

if __name__ == "__main__":  # the workers import this file too
    sys.exit(main())
