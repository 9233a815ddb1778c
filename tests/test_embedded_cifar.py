"""The embedded backbone for colour images: what it learns from, and what it is refused without."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from flt import backbones, embedded_cifar
from flt.errors import InputError


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
    found = [backbones.load(backbones.ModelConfig(name="embedded_cifar"), "image", 10, 0) for _ in range(2)]
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


def test_text_is_none_of_its_inputs() -> None:
    with pytest.raises(InputError, match="^model=embedded_cifar: it reads images only"):
        backbones.load(backbones.ModelConfig(name="embedded_cifar"), "text", 2, 0)
