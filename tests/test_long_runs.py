"""A thousand rounds: memory, open files and checkpoints stay what they were after a hundred."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest
from torch.utils.data import TensorDataset
from toys import Toy, toy_data

import flt
from flt.callbacks.base import FedCallback
from flt.federator import Federator

ROUNDS, EARLY = 1000, 100


class Measured(FedCallback):
    """What the process and the run's checkpoints take, every hundred rounds."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.files: dict[int, int] = {}
        self.disk: dict[int, list[int]] = {}

    def on_round_start(self, federator: Federator) -> None:
        done = federator.state.rounds
        if not done or done % EARLY:
            return
        gc.collect()
        process = psutil.Process()
        self.memory[done], self.files[done] = process.memory_info().rss, process.num_fds()
        folder = federator.client_states.folder
        assert folder is not None
        found = [path for path in folder.rglob("*") if path.is_file()]
        self.disk[done] = [len(found), sum(path.stat().st_size for path in found)]


@pytest.mark.slow
def test_round_1000_takes_what_round_100_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, measured = toy_data(60), Measured()
    validation = TensorDataset(*(column[:20] for column in data.tensors))
    overrides = ["local.steps=1", "local.optimizer=sgd", "eval.client_examples=0", "eval.every=50"]
    flt.fit(
        Toy("sgd"), flt.partition(data, by=None, clients=3), "scaffold", ROUNDS + 1, validation=validation,
        callbacks=[measured], progress=False, overrides=overrides,
    )  # fmt: skip
    assert sorted(measured.memory) == list(range(EARLY, ROUNDS + 1, EARLY))
    assert measured.memory[ROUNDS] < 1.05 * measured.memory[EARLY]
    assert len(set(measured.files.values())) == 1
    (files, early), (files_late, late) = measured.disk[EARLY], measured.disk[ROUNDS]
    assert files_late == files
    history = 200 * (ROUNDS - EARLY) * 50  # bytes that a checkpoint may hold of each figure of each round, of fifty
    assert late - early < history
