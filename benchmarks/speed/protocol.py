"""How a contestant talks to the coordinator: JSON lines, one round at a time.

    contestant: {"ready": 0}                      it waits, and does nothing meanwhile
    coordinator: go
    contestant: {"round": 1, "wall": ..., "cpu": ..., "weights": "round-1.safetensors", ...}
    contestant: {"ready": 1}                      ... until the coordinator closes the line

A contestant that can't take part says {"missing": why} instead and ends.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import save_file
from torch import Tensor


class Line:
    """The contestant's end.

    Args:
        folder: Where the weights go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.rounds = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        # frameworks print: what they write to stdout goes to the log, beside stderr, and never between the lines
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._in = os.fdopen(os.dup(0))  # multiprocessing closes the stdin of processes that it forks
        self._began = (0.0, 0.0)

    def say(self, **said: Any) -> None:
        """Sends one line."""
        print(json.dumps(said), file=self._out, flush=True)

    def begin(self) -> bool:
        """Waits until a round may begin; False where none follows."""
        self.say(ready=self.rounds)
        if self._in.readline().strip() != "go":
            return False
        self._began = (cpu_seconds(), time.perf_counter())
        return True

    def end(self, weights: Mapping[str, Tensor]) -> None:
        """Stops the clocks, then writes the aggregated weights down and says what the round took."""
        wall = time.perf_counter() - self._began[1]
        cpu = cpu_seconds() - self._began[0]
        self.rounds += 1
        path = self.folder / f"round-{self.rounds}.safetensors"
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}, path)
        self.say(round=self.rounds, wall=wall, cpu=cpu, weights=str(path), peak_mb=peak_mb())


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # not ru_maxrss where there is a choice: on Linux a process inherits that of the one that started it
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def cpu_seconds(process: int | None = None) -> float:
    """CPU time of a process and of all that it started, in seconds.

    Args:
        process: Its number; None: this one.
    """
    root = psutil.Process(process)
    ended = root.cpu_times()
    own = time.process_time() if process is None else ended.user + ended.system  # finer than the kernel's ticks
    total = own + ended.children_user + ended.children_system
    for child in root.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
