"""The embedded backbone for colour images: what it learns from, and what it is refused without."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import QUICK, in_empty_folder

import flt
from flt.api import train
from flt.core.errors import InputError
from flt.models import backbones, embedded_cifar
from flt.models.config import ModelConfig
from flt.run.compose import load_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache and a CIFAR-100 of 100 images, one for each class, whose grey level is the class."""
    images = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar100.npz", x_train=images, y_train=np.arange(100), x_test=images, y_test=np.arange(100))
    quick = dataclasses.replace(embedded_cifar.PRETRAINING, steps=2)
    monkeypatch.setattr(embedded_cifar, "PRETRAINING", quick)
    monkeypatch.setenv("FLT_DATA", str(tmp_path))
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_it_learns_from_the_first_half_of_the_classes_alone(folder: Path) -> None:
    images, labels = embedded_cifar._images(embedded_cifar.PRETRAINING.classes)
    assert images.shape == (50, 3, 32, 32)
    assert labels.tolist() == list(range(50))
    assert torch.equal(images.amax((1, 2, 3)), torch.arange(50) / 255)


def test_it_reads_colour_images_of_32_and_is_trained_once(folder: Path) -> None:
    found = [backbones.load(ModelConfig(name="embedded_cifar"), "image", 10, 0) for _ in range(2)]
    assert (found[0].image_size, found[0].channels) == (32, 3)
    assert found[0].model(pixel_values=torch.rand(2, 3, 32, 32)).logits.shape == (2, 10)
    assert found[0].source == found[1].source
    assert len(list((folder / "cache").iterdir())) == 1


def test_without_its_images_it_is_refused_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLT_DATA")
    monkeypatch.setattr("datasets.load_dataset", lambda path, subset: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(InputError, match=r"^model=embedded_cifar: it learns from CIFAR-100.*no network") as caught:
        embedded_cifar.embedded_cifar()
    assert "\n" not in str(caught.value)
    assert list((folder / "cache").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fl_tac", "c2a"])
def test_two_tasks_of_colour_images_are_federated_on_it(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(tmp_path))
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        parts = {}
        for part, each in (("train", 12), ("test", 1)):
            parts[f"y_{part}"] = np.repeat(np.arange(classes), each)
            parts[f"x_{part}"] = generator.integers(256, size=(classes * each, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", **parts)
    quick = [f"{key}={value}" for key, value in {**QUICK, "local.steps": 2, "batch_size": 4}.items()]
    tasks = ["data=cifar", "model=embedded_cifar", "jobs=per_task", "partition.kind=iid"]
    result = train(load_config([f"algo={algo}", *tasks, *quick]))
    assert {"task/cifar10/val_acc", "task/cifar100/val_acc"} <= set(result.metrics)
    assert np.isfinite(result.metrics["round/val_loss"])
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = {}
    for path in sorted(result.exported.rglob("head_*")):
        with torch.no_grad():
            found[path.name] = flt.load(path)(pixel_values=x).logits
            expected = result.module.model(pixel_values=x).logits
        assert found[path.name].isfinite().all()
        if path.name == f"head_{expected.shape[1]}" and algo == "c2a":
            torch.testing.assert_close(found[path.name], expected, rtol=0, atol=1e-5)
    assert {name: logits.shape[1] for name, logits in found.items()} == {"head_10": 10, "head_100": 100}


def test_text_is_none_of_its_inputs() -> None:
    with pytest.raises(InputError, match="^model=embedded_cifar: it reads images only"):
        backbones.load(ModelConfig(name="embedded_cifar"), "text", 2, 0)
