"""Users' LightningModules of many kinds: a federation of one client and one round is a plain ``Trainer.fit``."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import brought_modules as brought
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from asking_module import Asks
from brought_modules import Averaged, Brought, Point
from commands import in_empty_folder
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from plain_fits import ADAPTER, WHOLE_MODEL, federated_and_plain
from slowly import mostly_slowly
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from toys import CLASSES, toy_data

import flt
from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData

EXAMPLES = 60


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def points() -> TensorDataset:
    return toy_data(EXAMPLES)


def words() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, brought.WORDS, (EXAMPLES, brought.LENGTH), generator=generator)
    return TensorDataset(x, x[:, 0] % CLASSES)


class Made(Dataset):
    """Examples in a form of one's own."""

    def __init__(self, form: Any) -> None:
        self.examples = [form(x, label) for x, label in points()]

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, i: int) -> Any:
        return self.examples[i]


def some_words() -> list[Any]:
    """Sequences in which each word has a class, except for the first one."""
    return [(x, torch.cat([torch.tensor([-100]), x[1:] % CLASSES])) for x, _ in words()]


def noisy_collate(examples: list[Any]) -> list[torch.Tensor]:
    """A collate function that draws at random."""
    x = torch.stack([x for x, _ in examples])
    return [x + 0.1 * torch.randn_like(x), torch.stack([label for _, label in examples])]


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "plain": (Brought, points, {}),
    "torchmetrics of all kinds": (brought.Metrics, points, {}),
    "several epochs": (Brought, points, {"steps": None, "epochs": 2}),
    "a sequence of schedules": (brought.Scheduled, points, {}),
    "a schedule that needs the number of steps": (brought.OneCycle, points, {}),
    "a schedule that needs a metric": (brought.Plateau, points, {"steps": None, "epochs": 3}),
    "manual optimisation": (brought.Manual, points, {}),
    "two optimisers that take turns": (brought.TwoOptimisers, points, {"steps": 6}),
    "layer and group norms": (brought.Norms, points, {}),
    "batches that are dicts": (
        brought.Dicts, lambda: Made(lambda x, label: {"inputs": {"x": x}, "label": label}), {},
    ),
    "batches that are named tuples": (brought.NamedTuples, lambda: Made(Point), {}),
    "a collate function that draws": (Brought, points, {"collate": noisy_collate}),
    "gradient checkpointing": (brought.Checkpointed, points, {}),
    "bf16-mixed": (Brought, points, {"precision": "bf16-mixed"}),
    "tied weights": (brought.Tied, words, {}),
    "dropout and noise": (brought.Dropout, points, {}),
    "clipped gradients": (Brought, points, {"clip": 0.01}),
    "accumulated gradients": (Brought, points, {"accumulate": 2}),
    "groups of parameters": (brought.Groups, points, {}),
    "LBFGS": (brought.Lbfgs, points, {}),
    "an average of the weights by hand": (Brought, points, {"callbacks": lambda: [Averaged()]}),
    "a recurrent net": (brought.Recurrent, points, {}),
    "torch's transformer": (brought.Encoder, words, {}),
    "a transformers model": (brought.Transformers, words, {}),
    "a number for each example": (brought.Regression, lambda: Made(lambda x, label: (x, x[:1])), {}),
    "several classes for each example": (
        brought.MultiLabel, lambda: Made(lambda x, label: (x, (x[:CLASSES] > 0).float())), {},
    ),
    "a class for each token": (brought.Tokens, some_words, {}),
    "own clipping, steps and warm-up": (brought.ClipsByItself, points, {}),
    "batches without a loss": (brought.SkipsSteps, points, {}),
    "layers of configure_model": (brought.Configured, points, {}),
    "whatever a Trainer and a logger know": (Asks, points, {}),
}  # fmt: skip
WITHOUT_ADAPTER = {"a recurrent net", "tied weights"}
"""Kinds without a linear layer besides the head, or whose head isn't a layer of its own."""


@pytest.mark.parametrize(
    "method", [pytest.param(WHOLE_MODEL, marks=pytest.mark.slow), ADAPTER], ids=["fedavg", "fedit"]
)
@pytest.mark.parametrize("name", KINDS)
def test_one_client_and_one_round_are_a_plain_fit_bit_for_bit(name: str, method: tuple[str, ...]) -> None:
    if method is ADAPTER and name in WITHOUT_ADAPTER:
        method = WHOLE_MODEL
    make, data, settings = KINDS[name]
    federated, plain, result = federated_and_plain(make, data(), method, **settings)
    assert federated.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.equal(federated[key], value), key
    torch.manual_seed(0)
    start = dict(make().named_parameters())
    if method is WHOLE_MODEL and start:
        assert not all(torch.equal(start[key], value) for key, value in plain.items())
    assert "round/val_loss" in result.metrics or name == "torchmetrics of all kinds"


class Remakes(Brought):
    """Makes its layers anew whenever it is asked."""

    def configure_model(self) -> None:
        self.head = nn.Linear(8, CLASSES)


class WantsTrainer(brought.Configured):
    def configure_model(self) -> None:
        self.width = self.trainer.world_size


class Lazy(Brought):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(8), nn.ReLU())


class MakesInSetup(Brought):
    def setup(self, stage: str) -> None:
        self.head = nn.Linear(8, CLASSES)


class WithoutStep(Brought):
    training_step = pl.LightningModule.training_step


class WithoutOptimiser(Brought):
    configure_optimizers = pl.LightningModule.configure_optimizers


class LogsVectors(Brought):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("logits", self(batch[0]))
        return super().training_step(batch, batch_idx)


REFUSED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "layers that configure_model makes anew": (Remakes, (), r"^client 0=head.weight: the fit has made, replaced or"),
    "a configure_model that needs a Trainer": (WantsTrainer, (), r"^module=WantsTrainer: WantsTrainer is not attached"),
    "lazy layers": (Lazy, (), r"^module.body.0.weight=UninitializedParameter: its size isn't known yet"),
    "layers that setup makes": (MakesInSetup, (), r"^client 0=head.weight: the fit has made, replaced or removed"),
    "no training_step": (WithoutStep, (), r"^module=WithoutStep: No `training_step\(\)` method defined"),
    "no optimiser": (WithoutOptimiser, (), r"^module=WithoutOptimiser: No `configure_optimizers\(\)` method"),
    "manual optimisation, clipped": (
        brought.Manual, ("local.clip=1.0",), r"^local.clip=1.0: Manual has automatic_optimization=False, .* null$",
    ),
    "manual optimisation, accumulated": (
        brought.Manual, ("local.accumulate=2",), r"^local.accumulate=2: Manual has automatic_optimization=False, .* 1$",
    ),
    "a vector that is logged": (LogsVectors, (), r"^module=LogsVectors: `self.log\(logits"),
}  # fmt: skip


@pytest.mark.parametrize(
    "keys", [(), pytest.param(("min_updates=1",), marks=pytest.mark.slow)], ids=["strict", "tolerant"]
)
@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_work_is_one_line_and_leaves_no_folder(name: str, keys: tuple[str, ...], folder: Path) -> None:
    make, more, line = REFUSED[name]
    with pytest.raises(InputError, match=line) as caught:
        fit(make(), *keys, *more)
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())


def fit(
    module: pl.LightningModule, *keys: str, algo: str = "fedit", rounds: int = 1, **settings: Any
) -> flt.api.Result:
    shares = settings.pop("shares", None) or flt.partition(points(), by=None, clients=2)
    overrides = ["local.steps=3", *keys]
    return flt.fit(module, shares, algo, rounds, batch_size=8, progress=False, overrides=overrides, **settings)


def test_a_lazy_module_that_has_computed_one_batch_is_as_good_as_any() -> None:
    module = Lazy()
    module(points().tensors[0])
    assert fit(module).round_metrics


@pytest.mark.parametrize("algo", mostly_slowly(["fedit", "hafl", "flora", "fedavg"], ["fedit", "flora"]))
def test_what_is_exported_loads_into_a_module_whose_layers_configure_model_makes(algo: str) -> None:
    torch.manual_seed(0)
    result = fit(brought.Configured(), algo=algo)
    torch.manual_seed(0)
    loaded = flt.load(result.exported, brought.Configured())
    x = points().tensors[0]
    torch.testing.assert_close(loaded(x), result.module(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "algos",
    mostly_slowly(
        [["fedit", "fedit"], ["fedit", "flora"], ["flora", "fedit"], ["fedavg", "fedit"]], [["fedit", "fedit"]]
    ),
    ids=" then ".join,
)
def test_a_second_run_goes_on_with_the_layers_that_are_there(algos: list[str]) -> None:
    torch.manual_seed(0)
    module, x = Brought(), points().tensors[0]
    fit(module, algo=algos[0])
    between = copy.deepcopy(module)  # the second adapter belongs to it, also where the first run has changed the base
    result = fit(module, algo=algos[1])
    assert set(module.state_dict()) == set(between.state_dict()) or algos[0] == "fedavg"  # which has made no LoRA
    assert not torch.equal(result.module(x), between(x))
    torch.testing.assert_close(flt.load(result.exported, between)(x), result.module(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("algo", ["fedit", pytest.param("flora", marks=pytest.mark.slow)])
def test_the_trained_module_is_an_ordinary_one(algo: str) -> None:
    """Plain Lightning evaluates it to the same figures, and trains, copies and saves it."""
    result = fit(Brought(), algo=algo, validation=points())
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=2,
    )  # fmt: skip
    (found,) = trainer.validate(result.module, DataLoader(points(), EXAMPLES), verbose=False)
    assert found["val_loss"] == pytest.approx(result.metrics["round/val_loss"], abs=1e-6)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(result.module)))
    assert all(map(torch.equal, copied.parameters(), result.module.parameters()))
    trainer.fit(result.module, DataLoader(points(), 8))
    trainer.save_checkpoint("own.ckpt")
    assert trainer.global_step == 2
    assert not all(map(torch.equal, copied.parameters(), result.module.parameters()))


class Counts(Brought):
    """Keeps in its attributes what it has seen, and looks at it when a fit begins."""

    found: list[tuple[int, float, bool]] = []

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"rate": 0.1})
        self.seen = 0
        self.metric = torchmetrics.SumMetric()

    def on_train_start(self) -> None:
        value = float(self.metric.compute()) if self.metric.update_called else 0.0
        Counts.found.append((self.seen, value + self.hparams.rate, hasattr(self, "mean")))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += 1
        self.mean = batch[0].mean()
        self.hparams.rate = 0.5
        self.metric.update(1.0)
        return super().training_step(batch, batch_idx)


def test_nothing_that_a_module_keeps_passes_from_one_client_to_the_next() -> None:
    Counts.found = []
    fit(Counts(), rounds=2)
    assert Counts.found == [(0, pytest.approx(0.1), False)] * 4


def tiny_clients(sizes: tuple[int, ...], held_out: int) -> list[ClientSpec]:
    """Clients of so many examples for training."""
    clients, start = [], 0
    for i, size in enumerate(sizes):
        rows = np.arange(start, start + size)
        validation = np.arange(start + size, start + size + held_out * (i > 0))
        clients.append(ClientSpec(i, (JobData(points(), rows, validation, "task"),)))
        start += size + held_out
    return clients


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("local.accumulate=4",),
        pytest.param(("local.epochs=2", "local.steps=null"), marks=pytest.mark.slow),
        pytest.param(("local.clip=0.1",), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("held_out", [0, 1])
def test_clients_of_one_to_three_examples_train_whatever_is_set(held_out: int, keys: tuple[str, ...]) -> None:
    """Also where schedules and callbacks wait for a metric that a client without held-out examples doesn't have."""
    shares = tiny_clients((1, 2, 3), held_out)
    watching = [EarlyStopping("val_loss"), ModelCheckpoint(monitor="val_loss")]
    result = fit(brought.Plateau(), *keys, shares=shares, callbacks=watching)
    assert result.round_metrics[0]["clients/steps"] >= 3


class DrawsInValidation(Brought):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.logger.experiment.add_scalar("mine", 1.0)  # type: ignore[union-attr]  # TensorBoard's
        super().validation_step(batch, batch_idx)


def test_an_evaluation_has_the_logger_too() -> None:
    result = fit(DrawsInValidation())
    tags = EventAccumulator(str(result.path)).Reload().Tags()["scalars"]
    assert "mine" in tags
    assert tags.count("round/val_loss") == 1


PROGRAM = """
import os, torch, flt
from brought_modules import Brought
from toys import toy_data
if __name__ == "__main__":
    torch.manual_seed(0)
    clients = flt.partition(toy_data(60), alpha=5.0, clients=4)
    keys = ["engine=strategy", "devices=2", "local.steps=2"]
    result = flt.fit(Brought(), clients, "ALGO", 2, progress=False, overrides=keys)
    weights = float(sum(p.detach().double().abs().sum() for p in result.module.parameters()))
    found = f"{len(result.round_metrics)} {result.metrics['METRIC']} {weights} {result.exported.is_dir()}\\n"
    os.write(1, found.encode())  # at once, because two processes write
"""


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["hafl", "fedavg", "fedsa_lora"])
def test_all_processes_have_the_same_result(algo: str, folder: Path) -> None:
    metric = "clients/val_loss" if algo == "fedsa_lora" else "round/val_loss"
    Path("program.py").write_text(PROGRAM.replace("ALGO", algo).replace("METRIC", metric))
    support = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(support), *sys.path])}
    ran = subprocess.run(
        [sys.executable, "program.py"], env=environment, capture_output=True, text=True, timeout=300, check=True
    )  # fmt: skip
    assert "Traceback" not in ran.stderr
    first, second = [line for line in ran.stdout.splitlines() if line.endswith("True")]
    assert first == second
