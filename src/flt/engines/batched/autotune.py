"""Times short fits to choose how many jobs are trained at once. The results of these fits are discarded."""

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
"""Candidates for the number of jobs at once. For each candidate, a fit with this many jobs is timed."""
MAX_JOBS = CANDIDATES[-1]
"""Largest number of jobs at once."""
TIMED_STEPS = 3
"""Number of steps of a timed fit. The time of the first step isn't counted, because this step warms up."""
MAX_SLOWDOWN = 1.15
"""A candidate is dropped if it is slower than the best by more than this factor. Smaller differences may be noise."""
REPEATS = 2
"""Number of repetitions. In each, the remaining candidates are timed again, from the largest to the smallest."""
MAX_SECONDS = 10.0
"""No repetition begins after this number of seconds. If steps take long, noise matters little."""
MAX_TIME_RATIO = 0.98
"""A larger number of jobs is chosen only if its time per job is below this share of the time with fewer jobs.

More jobs at once take more memory, and a smaller gain isn't worth this memory.
"""
MEMORY_SHARE = 0.8
"""Share of the free memory. A candidate that is expected to use more than this share isn't timed."""


class StepTimer(Callback):
    """Measures the shortest time of a step in a fit. The first step isn't counted, because it warms up."""

    def __init__(self) -> None:
        self.seconds = float("inf")
        self._last: float | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Measures the time since the end of the previous step; called after each step."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._last is not None:
            self.seconds = min(self.seconds, now - self._last)
        self._last = now


def best_jobs(seconds: Callable[[int], float], jobs: int, device: torch.device) -> int:
    """Returns the number of jobs at once with the shortest time per job.

    The candidates are timed in ascending order. The timing ends when a candidate is clearly slower than the best, or
    when the next candidate would need too much memory. The memory is estimated as proportional to the number of jobs.
    Candidates that are nearly as fast as the best are then timed again, and the shortest time of each candidate counts.

    Args:
        seconds: Function that takes a number of jobs, trains this many jobs at once, and returns the seconds per step
            and job.
        jobs: Number of available jobs. No candidate is larger.
        device: Device whose memory limits the number of jobs.
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
    """Returns the fastest number of jobs. A larger number is chosen only if it is clearly faster (MAX_TIME_RATIO).

    Args:
        times: Number of jobs, ascending -> seconds per step and job.
    """
    best, at_best = 1, float("inf")
    for count, seconds in times.items():
        if seconds < MAX_TIME_RATIO * at_best:
            best, at_best = count, seconds
    return best
