"""Hundreds of rounds: memory, open files and checkpoints stay what they were after fifty."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import toys
from torch.utils.data import TensorDataset
from toys import Toy, toy_data

import flt
from flt.server.callback import FedCallback
from flt.server.federator import Federator

ROUNDS, EARLY, EVERY = 150, 50, 10
KEPT = 2
"""Checkpoints."""


class Measured(FedCallback):
    """What the process and the run's checkpoints take, every ten rounds."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.files: dict[int, int] = {}
        self.disk: dict[int, list[int]] = {}

    def on_round_start(self, federator: Federator) -> None:
        done = federator.state.rounds
        if done < EARLY or done % EVERY:
            return
        gc.collect()
        process = psutil.Process()
        self.memory[done], self.files[done] = process.memory_info().rss, process.num_fds()
        folder = federator.client_states.folder
        assert folder is not None
        found = [path for path in folder.rglob("*") if path.is_file()]
        self.disk[done] = [len(found), sum(path.stat().st_size for path in found)]


def measured() -> dict[str, dict[int, Any]]:
    """The figures of a whole run, in the folder that this process works in."""
    data, found = toy_data(60), Measured()
    validation = TensorDataset(*(column[:20] for column in data.tensors))
    overrides = ["local.steps=1", "local.optimizer=sgd", "eval.client_examples=0", "eval.every=50", "threads=1"]
    overrides.append("report=false")  # a page of megabytes is made now and then, whose memory hides what grows
    flt.fit(
        Toy("sgd"), flt.partition(data, by=None, clients=2), "scaffold", ROUNDS + 1, validation=validation,
        callbacks=[found], progress=False, overrides=overrides,
    )  # fmt: skip
    return {"memory": found.memory, "files": found.files, "disk": found.disk}


@pytest.mark.slow
def test_round_150_takes_what_round_50_took(tmp_path: Path) -> None:
    # in a process of its own: what other tests have left in this one comes and goes
    path = os.pathsep.join([str(Path(toys.__file__).parent), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, __file__], {**os.environ, "PYTHONPATH": path}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    memory, files, disk = ({int(at): its for at, its in found[key].items()} for key in ("memory", "files", "disk"))
    assert sorted(memory) == list(range(EARLY, ROUNDS + 1, EVERY))
    slope, _ = np.polyfit(list(memory), list(memory.values()), 1)
    assert slope < 30_000  # bytes a round; up to 3 MB come and go
    assert len(set(files.values())) == 1
    assert disk[ROUNDS][0] == disk[EARLY][0]
    by_round = (disk[ROUNDS][1] - disk[EARLY][1]) / (ROUNDS - EARLY) / KEPT
    assert by_round < 3000  # bytes of the figures of one round, which every checkpoint has of all


if __name__ == "__main__":
    print(json.dumps(measured()))
