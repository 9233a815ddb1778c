"""The command line inside the test's process: small runs in an empty folder, on a backbone that is there at once."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from flt.callbacks import loggers
from flt.cli.main import main
from flt.models import embedded, embedded_cifar

QUICK = {"rounds": 1, "clients": 3, "local.steps": 1, "eval.examples": 20, "eval.client_examples": 4}
"""What a run takes unless its arguments say otherwise."""


def in_empty_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in a folder, with what takes time left out: two steps of pre-training instead of 1100, no pictures."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(loggers, "_write_picture", lambda *_: None)
    monkeypatch.setattr(loggers, "_write_state", lambda *_: None)
    for backbone in (embedded, embedded_cifar):
        monkeypatch.setattr(backbone, "PRETRAINING", dataclasses.replace(backbone.PRETRAINING, steps=2))


def train(*arguments: str) -> int:
    """Runs ``flt train`` and returns its exit code."""
    given = {argument.partition("=")[0] for argument in arguments}
    return main(["train", *(f"{key}={value}" for key, value in QUICK.items() if key not in given), *arguments])


def metrics(run: Path) -> list[dict[str, str]]:
    """The rounds of a run, without the times."""
    with (run / "metrics.csv").open() as file:
        return [{key: v for key, v in row.items() if not key.startswith("time/")} for row in csv.DictReader(file)]
