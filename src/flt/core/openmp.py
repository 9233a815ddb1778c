"""Environment variables of OpenMP, which runs torch's threads on a CPU. Imports no torch."""

from __future__ import annotations

import os
import sys

IS_GIVEN = "OMP_NUM_THREADS" in os.environ
"""True if the user has set the number of threads. Lightning sets the variable later, in processes that it launches."""


def wait_passively() -> None:
    """Makes idle threads sleep instead of spin, unless the user has set OMP_WAIT_POLICY.

    A spinning thread occupies a core. On a machine where other processes compute too, threads that spin take the time
    of the one that works. OpenMP reads the variable when torch is imported, so afterwards this function does nothing.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
