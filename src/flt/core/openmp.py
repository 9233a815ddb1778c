"""Environment variables of OpenMP, which runs torch's threads on a CPU. This module doesn't import torch."""

from __future__ import annotations

import os
import sys

IS_GIVEN = "OMP_NUM_THREADS" in os.environ
"""True if the user has set OMP_NUM_THREADS.

The value is read on import, because Lightning sets the variable later in the processes that it launches.
"""


def wait_passively() -> None:
    """Makes idle threads sleep instead of busy-waiting, unless the user has set OMP_WAIT_POLICY.

    A thread that waits busily occupies a core. If other processes compute on the same machine, this slows down the
    threads that have work. OpenMP reads the variable when torch is imported. After that, this function does nothing.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
