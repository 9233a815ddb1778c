"""Kills runs at random moments, lets them go on, and compares what they become with runs that nobody disturbed.

    make chaos
    make chaos CHAOSARGS="--kills 10 --seed 3"
    make chaos CHAOSARGS="--kills 24 --engines batched,sharded"

All recipes in turn, each with the serial engine and with two processes that share the cohort, of which one or both are
killed; or with the engines that are named. Runs are those of the command line, small, in processes forked from this
one, which has the imports. The last line is ``<same bits> of <kills>``; the exit code is 1 unless all are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

import flt.run.run  # what runs import, so that forked ones needn't
import flt.run.workload  # as above
from flt.cli import main as cli
from flt.engines.process_group import LaunchedProcessGroup
from flt.run.conf_groups import choices

KILLS = 100
SHORT = [
    "rounds=3", "clients=4", "local.steps=2", "eval.examples=20", "eval.test_examples=20", "eval.client_examples=4",
    "threads=1",
]  # fmt: skip
ENGINES = {
    "serial": (1, []),
    "distributed": (2, ["engine=distributed", "devices=2"]),
    "batched": (1, ["engine=batched", "engine.jobs=2"]),
    "sharded": (2, ["engine=sharded", "devices=2"]),
}
"""Engine -> processes and overrides."""
USUAL = "serial,distributed"
LIMIT = 120.0
"""Seconds after which a run, or what is left of a killed one, is ended."""
MEETING = datetime.timedelta(seconds=LIMIT / 2)
"""How long a process waits for one that was killed before they met, as a launcher would have it wait."""


@dataclasses.dataclass
class Case:
    """A recipe with an engine.

    Attributes:
        algo: The recipe.
        engine: The engine.
        seconds: That the undisturbed run took.
        expected: Hash of its export.
    """

    algo: str
    engine: str
    seconds: float = 0.0
    expected: str = ""

    @property
    def processes(self) -> int:
        """How many there are."""
        return ENGINES[self.engine][0]

    def command(self, name: str) -> list[str]:
        """Of the command line, to start a run of this name and to go on with it."""
        return ["train", f"algo={self.algo}", *SHORT, *ENGINES[self.engine][1], f"name={name}", "resume=last"]


def started(case: Case, name: str, folder: Path) -> list[int]:
    """Starts a run, or goes on with it; returns its processes."""
    meeting = Path(tempfile.mkdtemp(dir=folder)) / "meeting"
    found = []
    for rank in range(case.processes):
        sys.stdout.flush()
        process = os.fork()
        if not process:
            _run(case, name, folder, rank, meeting)
        found.append(process)
    return found


def _run(case: Case, name: str, folder: Path, rank: int, meeting: Path) -> None:
    """The whole life of a forked process."""
    code = 1
    try:
        os.chdir(folder)
        log = os.open(folder / f"{name}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if case.processes > 1:
            os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(case.processes))
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=case.processes, timeout=MEETING
            )
            fabric: Any = SimpleNamespace(global_rank=rank, world_size=case.processes, device=torch.device("cpu"))

            def launch(devices: int, settings: Any, work: Callable[[LaunchedProcessGroup], Any]) -> Any:
                return work(LaunchedProcessGroup(fabric))

            flt.run.run.launch = launch  # type: ignore[assignment]  # these processes are there already
        code = cli.main(case.command(name))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # nothing of the parent's is to be ended twice


def ended(processes: Sequence[int], limit: float) -> list[int]:
    """Waits for all; returns their exit codes, negative for signals.

    Raises:
        TimeoutError: One takes longer: all are killed.
    """
    until, codes = time.monotonic() + limit, dict[int, int]()
    while len(codes) < len(processes):
        for process in set(processes) - set(codes):
            pid, status = os.waitpid(process, os.WNOHANG)
            if pid:
                codes[process] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                for left in set(processes) - set(codes):
                    os.kill(left, signal.SIGKILL)
                    os.waitpid(left, 0)
                raise TimeoutError(f"a process took more than {limit:.0f} s")
        time.sleep(0.005)
    return [codes[process] for process in processes]


def undisturbed(case: Case, folder: Path) -> None:
    """Runs a case to its end, and notes its time and its export.

    Raises:
        RuntimeError: It doesn't end well.
    """
    name, began = f"{case.algo}_{case.engine}", time.monotonic()
    codes = ended(started(case, name, folder), LIMIT)
    case.seconds = time.monotonic() - began
    if any(codes):
        raise RuntimeError(f"{name}: exit codes {codes}\n{(folder / f'{name}-0.log').read_text()}")
    case.expected = exported(folder / "lightning_logs" / name)
    if not case.expected:
        raise RuntimeError(f"{name}: nothing was exported")


def exported(folder: Path) -> str:
    """Hash of what the run in this folder exported, of each group, head or client; empty where it didn't."""
    found = (path for kind in ("adapter", "model") for path in folder.glob(f"version_*/{kind}/**/*.safetensors"))
    files, together = sorted(found), hashlib.sha256()
    for path in files:
        # a run that was killed as soon as its folder was there leaves it to nobody: the one after it is version_1
        together.update(Path(*path.relative_to(folder).parts[1:]).as_posix().encode())
        together.update(path.read_bytes())
    return together.hexdigest() if files else ""


def killed(case: Case, name: str, folder: Path, draw: random.Random) -> tuple[float, list[int]]:
    """Starts a run and kills processes of it at a random moment.

    Returns:
        Seconds after its start, and the ranks that were killed. A run that was quicker is started anew.
    """
    most = case.seconds
    while True:
        processes, after = started(case, name, folder), draw.uniform(0, most)
        victims = draw.choice([[0], [1], [0, 1]]) if case.processes > 1 else [0]
        time.sleep(after)
        done = [os.waitpid(process, os.WNOHANG)[0] for process in processes]
        left = [process for process, pid in zip(processes, done, strict=True) if not pid]
        alive = [rank for rank in victims if processes[rank] in left]
        for rank in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes[rank], signal.SIGKILL)
        codes = ended(left, LIMIT)
        if alive and -signal.SIGKILL in codes:
            return after, alive
        most = after
        shutil.rmtree(folder / "lightning_logs" / name, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    """Kills as often as was asked for."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", default=USUAL, help=f"of {', '.join(ENGINES)}; %(default)s without")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads of this process would be missing in forked ones
    draw, same, with_one, began = random.Random(asked.seed), 0, 0, time.monotonic()
    engines = asked.engines.split(",")
    if unknown := set(engines) - set(ENGINES):
        parser.error(f"{', '.join(sorted(unknown))}: allowed are {', '.join(ENGINES)}")
    cases = [Case(algo, engine) for algo in choices("algo") for engine in engines]
    folder = Path(tempfile.mkdtemp(prefix="flt-chaos-"))
    try:
        for number in range(asked.kills):
            case = cases[number % len(cases)]
            if not case.expected:
                undisturbed(case, folder)
            name = f"kill_{number}"
            after, ranks = killed(case, name, folder, draw)
            checkpoints = len(list((folder / "lightning_logs" / name).glob("version_*/checkpoints/round_*.json")))
            with_one += bool(checkpoints)
            codes = ended(started(case, name, folder), LIMIT)
            good = not any(codes) and exported(folder / "lightning_logs" / name) == case.expected
            same += good
            where = f"rank {' and '.join(map(str, ranks))} after {after:.2f} of {case.seconds:.2f} s"
            said = "same bits" if good else f"OTHER BITS, exit codes {codes}\n{(folder / f'{name}-0.log').read_text()}"
            print(f"{number + 1:>4}  {case.algo:<16} {case.engine:<9} killed {where:<40} {said}", flush=True)
            shutil.rmtree(folder / "lightning_logs" / name, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes, {with_one} of the killed runs had a checkpoint")
    print(f"{same} of {asked.kills}")
    return int(same != asked.kills)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
