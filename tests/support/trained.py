"""Finished runs that tests of evaluation and prediction share. Each is trained once in a session, in one folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import in_empty_folder, train
from PIL import Image

SHORT = ["clients=2", "rounds=2", "local.steps=4", "model.max_length=12", "partition.kind=iid"]
TEXTS = ["data=reviews.csv", "model=./bert", *SHORT]
RUNS = {
    "text": ["algo=fedit", *TEXTS, "data.test=0.3"],
    "merged": ["algo=fedavg", *TEXTS],
    "c2a": ["algo=c2a", *TEXTS],
    "names": ["algo=fedit", *TEXTS, "model.head=label_names"],
    "alone": ["algo=local", *TEXTS],
    "values": ["algo=fedit", *TEXTS, "data.test=0.3", "data.column=label_name", "eval.by_column=true"],
    "personal": ["algo=fedsa_lora", *TEXTS],
    "tasks": ["algo=fl_tac", "clients=3", "rounds=2", "local.steps=4"],
    "changing": ["algo=fl_tac", "data=digits_two", "heads=shared", "task_changes={digit: [parity, 2]}", *SHORT[:3]],
    "shared": ["algo=fedit", "data=digits_two", "heads=shared", "jobs=per_task", *SHORT[:3]],
    "photos": ["algo=fedit", "data=./photos", "model=./vit", "data.test=0.2", *SHORT[:3]],
    "causal": ["algo=fedit", "data=inst.parquet", "model=./gpt", "data.response=response", "data.test=0.2", *SHORT],
}


class Trained:
    """The runs, by name. Their folders are relative to the working folder, as on a command line."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.done = set[str]()

    def __call__(self, name: str) -> Path:
        """Trains a run unless this has been done, and returns its folder."""
        if name not in self.done:
            with pytest.MonkeyPatch.context() as patch:
                in_empty_folder(self.place, patch)
                write_data(self.place)
                assert train(*RUNS[name], f"name={name}") == 0
            self.done.add(name)
        return self.place / "lightning_logs" / name / "version_0"

    def export(self, name: str) -> Path:
        """The folder of a run's exported models."""
        run = self(name)
        return next(run / kind for kind in ("adapter", "model") if (run / kind).is_dir())

    def copy(self, name: str, to: Path) -> Path:
        """A copy of a run, which a test may change, in a folder with the same models."""
        run = self(name)
        for model in ("bert", "vit", "gpt"):
            os.symlink(self.place / model, to / model)
        return Path(shutil.copytree(run, to / "lightning_logs" / name / "version_0"))


def write_data(place: Path) -> None:
    """Writes the data and the models of all runs, unless this has been done."""
    if (place / "bert").exists():
        return
    tiny.save_bert(place / "bert")
    tiny.save_decoder(place / "gpt")
    tiny.save_reviews(place / "reviews.csv", 120, 4)
    tiny.save_instructions(place / "inst.parquet", 60)
    save_photos(place / "photos")
    save_vit(place / "vit")


def save_photos(folder: Path) -> None:
    """A folder of dark and of light images."""
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        for i in range(16):
            place = folder / name / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(low, low + 100, (20, 20, 3)).astype(np.uint8)).save(place)


def save_vit(folder: Path) -> None:
    import transformers

    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**shape, intermediate_size=16, image_size=8, patch_size=4)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
