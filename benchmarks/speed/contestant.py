"""The coordinator's end of the line: starts a contestant, asks it for rounds and says how disturbed they were."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from benchmarks.speed.protocol import cpu_seconds

SETTLING = 0.3
"""Seconds after it may run again: daemons catch up."""
LIMIT = 300.0
"""Seconds that a contestant may take for its start or a round."""
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
AS_INSTALLED = {"PYTHONDONTWRITEBYTECODE": ""}
"""What is installed has its bytecode; flt, which runs from its sources, would be compiled at each start without."""


class ContestantError(RuntimeError):
    """A contestant ended, or took too long."""


class MissingError(RuntimeError):
    """A contestant can't take part here, and says why."""


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round took.

    Attributes:
        wall: Seconds.
        cpu: CPU seconds of the contestant's processes.
        foreign: CPU seconds of everybody else meanwhile, what the hypervisor took included.
        peak_mb: Largest resident memory of the contestant's main process so far.
        weights: File of the aggregated weights.
    """

    wall: float
    cpu: float
    foreign: float
    peak_mb: float = 0.0
    weights: str = ""

    @property
    def disturbed(self) -> bool:
        """Whether others took more than a tenth of one core meanwhile, give or take the kernel's clock ticks."""
        return self.foreign > 0.1 * self.wall + 0.03


@dataclasses.dataclass
class Contestant:
    """One process of the benchmark.

    Attributes:
        name: In the tables.
        command: What to start.
        log: Where everything goes that it prints.
        environment: On top of ours.
        pinned: Whether each of its rounds runs on the one core that it is told.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pinned: bool = False
    peak_mb: float = dataclasses.field(default=0.0, init=False)
    """Largest resident memory of its main process, as of its last round."""

    def start(self) -> None:
        """Starts the process; :meth:`ready` waits for it.

        Raises:
            MissingError: It can't take part.
        """
        self.began = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(self.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, **ONE_THREAD, **AS_INSTALLED, **self.environment},
            )  # fmt: skip

    def ready(self) -> None:
        """Waits until it waits.

        Raises:
            MissingError: It can't take part.
        """
        self._read("ready")

    def round(self, number: int = 0) -> Round:
        """Lets it run one round, and returns once it waits again; in between, none of its processes runs.

        Args:
            number: Of the round: who is pinned goes from core to core with it.
        """
        own = psutil.Process(self.process.pid)
        if self.pinned and hasattr(own, "cpu_affinity"):  # not on macOS
            with contextlib.suppress(psutil.Error):  # it has ended, which what it doesn't say will tell
                own.cpu_affinity([CORES[number % len(CORES)]])
        self._all(signal.SIGCONT)
        time.sleep(SETTLING)
        before = _busy()
        self.go()
        said = self._read("round")
        foreign, self.peak_mb = _busy() - before - said["cpu"], said["peak_mb"]
        self.ready()
        self._all(signal.SIGSTOP)  # daemons of the one would take time from the others
        return Round(said["wall"], said["cpu"], foreign, self.peak_mb, said["weights"])

    def first(self) -> Round:
        """Starts it and lets it run its first round: what it took from the process' start to the round's end."""
        before = _busy()
        self.start()
        self.go()
        said = self._read("round")
        wall, cpu = time.perf_counter() - self.began, cpu_seconds(self.process.pid)
        return Round(wall, cpu, _busy() - before - cpu, said["peak_mb"], said["weights"])

    def go(self) -> None:
        """Lets the next round begin, now or as soon as it is ready."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """Ends the process and what it started, if it was started."""
        if "process" not in vars(self) or self.process.poll() is not None:
            return
        self._all(signal.SIGKILL)
        self.process.wait()

    def _all(self, number: int) -> None:
        """Sends a signal to its processes."""
        own = psutil.Process(self.process.pid)
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # ended with its parent
                process.send_signal(number)

    def _read(self, key: str) -> dict[str, Any]:
        """The next line that says ``key``."""
        timer = threading.Timer(LIMIT, self.stop)
        timer.start()
        assert self.process.stdout
        try:
            for line in self.process.stdout:
                said = json.loads(line)
                if "missing" in said:
                    raise MissingError(said["missing"])
                if key in said:
                    return said
        finally:
            timer.cancel()
        tail = "\n".join(self.log.read_text().splitlines()[-15:])
        raise ContestantError(f"{self.name} ended, or took more than {LIMIT:.0f} s:\n{tail}")


def _busy() -> float:
    """CPU seconds that all cores have been busy or taken away so far; 0 where the kernel doesn't say."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
