"""Runs cells side by side, each in a process that runs many."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from benchmarks.results.cell import Cell, Record
from benchmarks.results.worker import serve

Answer = Record | str
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}


class Worker:
    """A process, and what it is running.

    Args:
        folder: For the files of the runs.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.cell: Cell | None = None
        self.start()

    def start(self) -> None:
        """Starts the process, or a new one in the place of one that died."""
        context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and random state
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, self.folder), daemon=True)
        self.process.start()
        other.close()

    def take(self, cell: Cell) -> None:
        """Begins a cell."""
        self.cell = cell
        self.connection.send(cell)

    def finish(self) -> tuple[Cell, Answer]:
        """The cell that is done, and its answer; the process may have been killed."""
        assert self.cell is not None
        cell, self.cell = self.cell, None
        try:
            return cell, self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.connection.close()
            self.start()
            return cell, f"the process that ran it ended with exit code {code}"

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.connection.close()  # which is all that an idle one needs
        if self.cell is None:
            self.process.join(5)
        for end in (self.process.terminate, self.process.kill):
            if self.process.is_alive():
                end()
                self.process.join(5)


def run(cells: Sequence[Cell], jobs: int) -> Generator[tuple[Cell, Answer], None, None]:
    """Yields each cell with its record, or with what went wrong, as they finish.

    Args:
        cells: In the order in which they begin.
        jobs: Side by side.
    """
    waiting = list(reversed(cells))
    with tempfile.TemporaryDirectory(prefix="flt-results-") as folder, _environment():
        workers = [Worker(folder) for _ in range(min(jobs, len(cells)))]
        try:
            busy: dict[Any, Worker] = {}
            for worker in workers:
                worker.take(waiting.pop())
                busy[worker.connection] = worker
            while busy:
                for connection in wait(list(busy)):
                    worker = busy.pop(connection)
                    finished = worker.finish()
                    if waiting:
                        worker.take(waiting.pop())
                        busy[worker.connection] = worker
                    yield finished
        finally:
            for worker in workers:
                worker.stop()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """One thread for each process: sums run in the same order everywhere, and the cores aren't fought over."""
    before = {key: os.environ.get(key) for key in _ENVIRONMENT}
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # also then the processes are ended
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
