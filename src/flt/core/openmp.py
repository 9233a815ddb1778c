"""Environment variables of OpenMP, which runs torch's threads on a CPU. This module doesn't import torch."""

from __future__ import annotations

import os
import sys

IS_GIVEN = "OMP_NUM_THREADS" in os.environ
"""True if the user has set OMP_NUM_THREADS.

The value is read on import, because Lightning sets the variable later in the processes that it launches.
"""
SPINS = 10_000
"""Number of times that a waiting thread looks for work before it sleeps. GNU OpenMP's default is 300,000.

A waiting thread occupies a core. On a machine where other processes compute, each look of a waiting thread delays the
threads that have work. With 10,000 looks, a run on a busy machine takes about as long as without any look, and a run
on an idle machine takes about as long as with 300,000.
"""


def limit_busy_waiting() -> None:
    """Sets GOMP_SPINCOUNT to SPINS, unless the user has set GOMP_SPINCOUNT or OMP_WAIT_POLICY.

    GNU OpenMP, which torch's packages contain, reads GOMP_SPINCOUNT when torch is imported. If torch has been imported
    already, this function does nothing.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
