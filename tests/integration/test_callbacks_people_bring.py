"""Every callback of Lightning: it works as in a plain ``Trainer.fit``, is left out and said, or refused in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from brought_modules import Brought
from commands import in_empty_folder
from lightning.pytorch import callbacks
from plain_fits import ADAPTER, WHOLE_MODEL, federated_and_plain
from torch import nn
from toys import toy_data

import flt
from flt.core.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


class Net(Brought):
    """Has what callbacks of Lightning want: a backbone, and a learning rate."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.lr = 1e-2
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(self.backbone(x))))


class Untouched(callbacks.BaseFinetuning):
    """A subclass that thaws nothing."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None: ...

    def finetune_function(self, *_: Any) -> None: ...


def thaws() -> callbacks.Callback:
    return callbacks.BackboneFinetuning(1, backbone_initial_lr=1e-2)


WORK: dict[str, Callable[[], callbacks.Callback]] = {
    "BaseFinetuning": Untouched,
    "BasePredictionWriter": callbacks.BasePredictionWriter,
    "Callback": callbacks.Callback,
    "Checkpoint": callbacks.Checkpoint,
    "DeviceStatsMonitor": callbacks.DeviceStatsMonitor,
    "EarlyStopping": lambda: callbacks.EarlyStopping("val_loss", patience=0, min_delta=10.0),
    "EMAWeightAveraging": lambda: callbacks.EMAWeightAveraging(decay=0.5),
    "GradientAccumulationScheduler": lambda: callbacks.GradientAccumulationScheduler({0: 2, 1: 3}),
    "LambdaCallback": lambda: callbacks.LambdaCallback(on_train_start=lambda trainer, module: None),
    "LearningRateFinder": lambda: callbacks.LearningRateFinder(num_training_steps=5),
    "LearningRateMonitor": callbacks.LearningRateMonitor,
    "ModelCheckpoint": lambda: callbacks.ModelCheckpoint(monitor="val_loss"),
    "ModelSummary": callbacks.ModelSummary,
    "OnExceptionCheckpoint": lambda: callbacks.OnExceptionCheckpoint("crashed"),
    "RichModelSummary": callbacks.RichModelSummary,
    "SpikeDetection": lambda: callbacks.SpikeDetection(atol=100.0),
    "StochasticWeightAveraging": lambda: callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    "ThroughputMonitor": lambda: callbacks.ThroughputMonitor(lambda batch: len(batch[0])),
    "Timer": lambda: callbacks.Timer("00:01:00:00"),
    "WeightAveraging": callbacks.WeightAveraging,
}
LEFT_OUT = ("ProgressBar", "RichProgressBar", "TQDMProgressBar")
REFUSED: dict[str, tuple[Callable[[], callbacks.Callback], str]] = {
    "BackboneFinetuning": (thaws, r"^client 0=backbone.0.base_layer.weight: the frozen weights have changed"),
    "BatchSizeFinder": (callbacks.BatchSizeFinder, r"^callbacks=BatchSizeFinder: flt makes the batches"),
    "ModelPruning": (
        lambda: callbacks.ModelPruning("l1_unstructured", amount=0.5), r"^callbacks=ModelPruning: it replaces the",
    ),
}  # fmt: skip


def test_the_table_has_every_callback_of_lightning() -> None:
    assert {*WORK, *LEFT_OUT, *REFUSED} == set(callbacks.__all__)


@pytest.mark.parametrize(
    "method", [pytest.param(WHOLE_MODEL, marks=pytest.mark.slow), ADAPTER], ids=["fedavg", "fedit"]
)
@pytest.mark.parametrize("name", [*WORK, *LEFT_OUT])
def test_a_callback_that_works_makes_of_a_fit_what_it_makes_of_a_plain_one(name: str, method: tuple[str, ...]) -> None:
    make = WORK.get(name, lambda: callbacks.Callback())
    given = (lambda: [make()]) if name in WORK else tuple
    settings: dict[str, Any] = {"steps": None, "epochs": 3}
    federated, plain, _ = federated_and_plain(Net, toy_data(60), method, given, **settings)
    for key, value in plain.items():
        assert torch.equal(federated[key], value), key


def fit(given: list[callbacks.Callback], *keys: str, algo: str = "fedit", module: Any = None) -> flt.api.Result:
    shares = flt.partition(toy_data(60), by=None, clients=2)
    overrides = keys or ("local.epochs=3", "local.steps=null")
    return flt.fit(
        module or Net(), shares, algo, 1, batch_size=8, callbacks=given, progress=False, overrides=overrides
    )  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_progress_bar_is_left_out_and_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit([getattr(callbacks, name)()])
    assert [r.getMessage() for r in caplog.records if name in r.getMessage()] == [
        f"{name}: left out of the fits, because flt shows the progress of the rounds"
    ]


class BringsCallbacks(Net):
    """Makes its callbacks itself."""

    def configure_callbacks(self) -> Any:
        bars = [callbacks.RichProgressBar(), callbacks.TQDMProgressBar()]
        return [*bars, callbacks.EarlyStopping("val_loss"), callbacks.ModelCheckpoint(monitor="val_loss")]


def test_progress_bars_that_a_module_makes_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    result = fit([], module=BringsCallbacks())
    assert "it/s" not in "".join(capfd.readouterr())
    assert list((result.path / "fits").rglob("*.ckpt"))


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_work_is_refused_in_one_line_and_leaves_no_folder(name: str, folder: Path) -> None:
    make, line = REFUSED[name]
    with pytest.raises(InputError, match=line) as caught:
        fit([make()])
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())


def test_a_callback_may_thaw_what_the_plan_trains() -> None:
    federated, plain, _ = federated_and_plain(
        Net, toy_data(60), WHOLE_MODEL, lambda: [thaws()], steps=None, epochs=3
    )  # fmt: skip
    assert all(torch.equal(federated[key], value) for key, value in plain.items())


class Uncopied(callbacks.Callback):
    """Holds what can't be copied."""

    def __init__(self) -> None:
        self.numbers = (i for i in range(3))


WRONG: dict[str, tuple[list[callbacks.Callback], tuple[str, ...], str]] = {
    "a metric that nobody logs, awaited": ([callbacks.EarlyStopping("nope")], (), r"^module=Net: Early stopping"),
    "a metric that nobody logs, monitored": (
        [callbacks.ModelCheckpoint(monitor="nope")], (), r"^module=Net: `ModelCheckpoint\(monitor='nope'\)`",
    ),
    "two ways to accumulate": (
        [callbacks.GradientAccumulationScheduler({0: 2})], ("local.accumulate=2",), r"^module=Net: You have set",
    ),
    "no way to copy it": ([Uncopied()], (), r"^callbacks=Uncopied: cannot pickle 'generator'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_lightning_says_about_a_callback_is_one_line(name: str, folder: Path) -> None:
    given, keys, line = WRONG[name]
    with pytest.raises(InputError, match=line) as caught:
        fit(given, *keys)
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())
