"""Command lines run as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHORT = ["algo=hafl", "rounds=2", "clients=4", "local.steps=2", "eval.examples=20", "eval.client_examples=4"]


LIMIT = 300
"""Seconds."""


def flt(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flt", "train", *SHORT, *overrides],
        cwd=folder, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(*runs: subprocess.Popen[str]) -> list[str]:
    """What the runs printed, once they have all ended well."""
    printed = [run.communicate(timeout=LIMIT)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), printed
    return printed
