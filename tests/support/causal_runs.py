"""Finished runs of a tiny causal model, which are trained once in a process. Tests read them, and change copies."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import tempfile
from pathlib import Path

import pytest
from commands import in_empty_folder, train
from tiny import save_decoder, save_instructions

_FOLDER = tempfile.TemporaryDirectory()  # removed when the process ends
COMMON = (
    "data=rows.parquet", "data.response=response", "data.text=instruction", "data.text_pair=context",
    "data.label=category", "model.max_length=16", "local.steps=2", "local.lr=0.05", "batch_size=4",
)  # fmt: skip
RUNS = {
    "one": ("algo=fedit",),
    "groups": ("algo=fl_tac", "jobs=per_task", "data.tasks={open:[open_qa],closed:[closed_qa]}"),
    "clients": ("algo=fedsa_lora",),
    "merged": ("algo=flora", "data.prompts=['Q {instruction} C {context} A','Q {instruction} A']"),
}


@functools.cache
def causal_run(name: str) -> Path:
    """Returns the folder of a finished run, one of RUNS."""
    folder = Path(_FOLDER.name) / name
    folder.mkdir()
    save_decoder(folder / "gpt2")
    save_instructions(folder / "rows.parquet", rows=60)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        in_empty_folder(folder, patch)
        assert train(*COMMON, *RUNS[name], "name=run", f"model={folder / 'gpt2'}") == 0
    return folder / "lightning_logs" / "run" / "version_0"


def copied(name: str, folder: Path) -> Path:
    """Returns a copy of a run, as the newest one in ``folder/lightning_logs``."""
    target = folder / "lightning_logs" / "run" / "version_0"
    shutil.copytree(causal_run(name), target)
    return target
