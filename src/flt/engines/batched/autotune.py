"""Choice of the number of jobs at once: timed in throw-away fits, and limited by memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback

from flt.core.memory import available_memory, is_out_of_memory, peak_memory, release_memory

_log = logging.getLogger(__name__)
CANDIDATES = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of jobs at once that are timed."""
MAX_JOBS = CANDIDATES[-1]
"""Largest number of jobs at once."""
TIMED_STEPS = 3
"""Steps of a timed fit; the first one warms up."""
MAX_SLOWDOWN = 1.15
"""A candidate is dropped if it is slower than the best by more than this factor; less may be a disturbance."""
REPEATS = 2
"""Number of times that the remaining candidates are timed again, in reverse order."""
MAX_SECONDS = 10.0
"""Seconds after which no candidate is timed again: disturbances matter little if steps take long."""
MAX_TIME_RATIO = 0.98
"""More jobs at once must take less than this share of the time with fewer, since they cost memory."""
MEMORY_SHARE = 0.8
"""Share of the free memory that may be used."""


class StepTimer(Callback):
    """Times all steps of a fit except the first, and keeps the shortest time, the best measure of a few steps."""

    def __init__(self) -> None:
        self.seconds = float("inf")
        self._last: float | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Called after each step."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._last is not None:
            self.seconds = min(self.seconds, now - self._last)
        self._last = now


def best_jobs(seconds: Callable[[int], float], jobs: int, device: torch.device) -> int:
    """Returns the number of jobs at once with the least time per job.

    Larger and larger numbers are tried until the time rises or the memory would not suffice, if its use grows in
    proportion to the number of jobs. Candidates nearly as fast as the best are timed again, and their shortest times
    count.

    Args:
        seconds: Number of jobs at once -> seconds per step and job, measured in a fit.
        jobs: Number of jobs that there are.
        device: Device whose memory limits the number.
    """
    times: dict[int, float] = {}
    tried, used, start_time = 1, 0, time.perf_counter()
    release_memory()
    peak_before = peak_memory(device)
    for count in sorted({count for count in CANDIDATES if count < jobs} | {min(jobs, MAX_JOBS)}):
        release_memory()
        if count > 1 and used / tried * count > MEMORY_SHARE * available_memory(device):
            break
        try:
            times[count] = seconds(count)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        used, tried = max(0, peak_memory(device) - peak_before), count
        _log.debug("%d jobs at once: %.4f s per step and job, %d bytes", count, times[count], used)
        if times[count] > MAX_SLOWDOWN * min(times.values()):
            break
    for _ in range(REPEATS):
        if time.perf_counter() - start_time > MAX_SECONDS:
            break
        for count in [count for count in reversed(times) if times[count] <= MAX_SLOWDOWN * min(times.values())]:
            try:
                times[count] = min(times[count], seconds(count))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                del times[count]
    release_memory()
    return _fewest_jobs(times)


def _fewest_jobs(times: dict[int, float]) -> int:
    """Returns the smallest number of jobs such that no larger number is clearly faster."""
    best, at_best = 1, float("inf")
    for count, seconds in times.items():
        if seconds < MAX_TIME_RATIO * at_best:
            best, at_best = count, seconds
    return best
