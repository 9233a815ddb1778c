"""The command line inside the test's process: small runs in an empty folder, on a backbone that is there at once."""

from __future__ import annotations

import csv
import dataclasses
import functools
from pathlib import Path

import pytest

from flt.callbacks import tensorboard
from flt.cli.main import main
from flt.models import embedded, embedded_cifar

QUICK = {"rounds": 1, "clients": 3, "local.steps": 1, "eval.examples": 20, "eval.client_examples": 4}
"""What a run takes unless its arguments say otherwise."""


def in_empty_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in a folder, with what takes time left out: two steps of pre-training instead of 1100, no pictures."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tensorboard, "write_picture", lambda *_: None)
    monkeypatch.setattr(tensorboard, "write_state", lambda *_: None)
    for backbone in (embedded, embedded_cifar):
        monkeypatch.setattr(backbone, "PRETRAINING", dataclasses.replace(backbone.PRETRAINING, steps=2))


def train(*arguments: str) -> int:
    """Runs ``flt train`` and returns its exit code."""
    given = {argument.partition("=")[0] for argument in arguments}
    return main(["train", *(f"{key}={value}" for key, value in QUICK.items() if key not in given), *arguments])


@functools.cache
def _files_of_a_run(name: str) -> dict[Path, bytes]:
    assert train("algo=fedit", f"name={name}") == 0
    return {path: path.read_bytes() for path in Path("lightning_logs", name).rglob("*") if path.is_file()}


def finished_run(folder: Path, name: str) -> Path:
    """Writes a finished run of FedIT into the working folder; it is trained once in a process."""
    for path, data in _files_of_a_run(name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder / "lightning_logs" / name / "version_0"


def metrics(run: Path) -> list[dict[str, str]]:
    """The rounds of a run, without the times."""
    with (run / "metrics.csv").open() as file:
        return [{key: v for key, v in row.items() if not key.startswith("time/")} for row in csv.DictReader(file)]
