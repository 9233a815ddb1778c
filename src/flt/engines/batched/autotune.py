"""How many jobs at once: timed on throw-away fits, capped by memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback

from flt.core.memory import available_memory, free, is_out_of_memory, taken

_log = logging.getLogger(__name__)


CANDIDATES = (1, 2, 5, 10, 20, 50, 100)


MOST = CANDIDATES[-1]


STEPS = 3
"""Steps of a timed fit; the first warms up."""


SLOWER = 1.15
"""By so much a candidate has to be slower than the best to be out: less may be a disturbance."""


AGAIN = 2
"""How often those that are left are timed again, the other way round."""


LONG = 10.0
"""Seconds after which nothing is timed again: where steps take long, disturbances are small beside them."""


CLEARLY = 0.98
"""More jobs at once have to be faster by that factor, since they cost memory."""


SHARE = 0.8
"""Of the free memory that may be taken."""


class Clock(Callback):
    """Times the steps of a fit but the first: with as few, the quickest says most."""

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


def chosen(seconds: Callable[[int], float], jobs: int, device: torch.device) -> int:
    """The number of jobs at once with which a job takes the least time.

    Tried are more and more of them until it gets slower, or memory wouldn't suffice: what they take is taken to grow
    with their number. Those that are nearly as fast as the best are timed again, and their quickest time counts.

    Args:
        seconds: Number of jobs -> seconds per step and job, by a fit of so many.
        jobs: The most that there are.
        device: Whose memory.
    """
    found: dict[int, float] = {}
    tried, grown, began = 1, 0, time.perf_counter()
    free()
    start = taken(device)
    for count in sorted({count for count in CANDIDATES if count < jobs} | {min(jobs, MOST)}):
        free()
        if count > 1 and grown / tried * count > SHARE * available_memory(device):
            break
        try:
            found[count] = seconds(count)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        grown, tried = max(0, taken(device) - start), count
        _log.debug("%d jobs at once: %.4f s per step and job, %d bytes", count, found[count], grown)
        if found[count] > SLOWER * min(found.values()):
            break
    for _ in range(AGAIN):
        if time.perf_counter() - began > LONG:
            break
        for count in [count for count in reversed(found) if found[count] <= SLOWER * min(found.values())]:
            try:
                found[count] = min(found[count], seconds(count))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                del found[count]
    free()
    return _fewest(found)


def _fewest(found: dict[int, float]) -> int:
    """The fewest jobs than which no more are clearly faster."""
    best, at_best = 1, float("inf")
    for count, seconds in found.items():
        if seconds < CLEARLY * at_best:
            best, at_best = count, seconds
    return best
