"""A process that runs cells one after the other, so that the libraries are imported once."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.results.cell import Cell, Record, rounded, series

from flt.core.imports import import_without_gc

PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "scikit-learn", "numpy")
CPU_FLAGS = {"amx_bf16": "AMX bf16", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
SMALL_LM = "model=small_lm"
TAIL = 25
"""Lines of a failed run that are shown."""


def serve(connection: Connection, folder: str) -> None:
    """Answers each cell that comes in with its record, or with the last lines of what went wrong.

    Args:
        connection: Cells in, ``Record | str`` out; closed by the other side to end.
        folder: For the files of the runs; the other side removes it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; who started this process ends it
    signal.signal(signal.SIGTERM, _end)
    import_without_gc("flt.api", freeze=True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            cell = connection.recv()
            connection.send(answer(cell, Path(folder)))


def _end(*_: object) -> None:
    """Ends with all that libraries do at an exit, which a second signal shall not break off."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


def answer(cell: Cell, folder: Path) -> Record | str:
    """The record of a cell, or the last lines of what it said."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as root:
        log = Path(root) / "log"
        try:
            with said_to(log):
                return run(cell, f"{root}/runs")
        except Exception as error:  # any cell may fail in any way, and the others go on
            return _tail(log, error)


def located(override: str) -> str:
    """``model=small_lm`` names the project's small causal language model, which has no name of its own in conf/."""
    if override != SMALL_LM:
        return override
    from benchmarks.tools.small_lm import Settings, small_lm

    return f"model={small_lm(Settings(), Path(os.environ['FLT_DATA']))}"


def run(cell: Cell, root: str) -> Record:
    """Runs a cell."""
    import torch

    from flt.api import train
    from flt.callbacks.task_map import FILE, read_csv
    from flt.core import cache
    from flt.run.resume import configure

    torch.set_num_threads(1)
    cfg = configure([*map(located, cell.overrides), f"seed={cell.seed}", "threads=1", f"root={root}"])
    began = time.perf_counter()
    cache.release()  # what the cells before have used may make room
    result = train(cfg)
    seconds = round(time.perf_counter() - began, 1)
    test = {key.removeprefix("test/"): value for key, value in result.metrics.items() if key.startswith("test/")}
    return Record(
        table=cell.table,
        row=cell.row,
        seed=cell.seed,
        overrides=cell.overrides,
        fingerprint=cell.fingerprint,
        history=series(result.round_metrics),
        test={key: short for key, value in sorted(test.items()) if (short := rounded(value)) is not None},
        versions=versions(),
        hardware=hardware(),
        threads=torch.get_num_threads(),
        seconds=seconds,
        task_map=read_csv(result.path / FILE),
    )


@contextlib.contextmanager
def said_to(path: Path) -> Iterator[None]:
    """What the process writes to its terminal goes to a file, that of C libraries too."""
    kept = [os.dup(1), os.dup(2)]
    with path.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, old in zip((1, 2), kept, strict=True):
                os.dup2(old, descriptor)
                os.close(old)


def _tail(log: Path, error: Exception) -> str:
    """A mistake in the input is one line; anything else comes with what it said and where it came from."""
    from flt.core.errors import InputError

    if isinstance(error, InputError):
        return str(error)
    said = log.read_text(errors="replace") + "".join(traceback.format_exception(error))
    return "\n".join(said.rstrip().splitlines()[-TAIL:])


def versions() -> dict[str, str]:
    """Package -> its version, without what tells builds of it apart."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found


def hardware() -> str:
    """The class of the hardware: nothing by which one machine could be told from another of its kind."""
    import torch

    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    best = next((f" with {said}" for flag, said in CPU_FLAGS.items() if flag in flags), "")
    return f"{cores} cores of an {platform.machine()} CPU{best}"
