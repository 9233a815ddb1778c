"""``flt.fit`` with a user's own module, data and callbacks."""

from __future__ import annotations

import copy
import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from commands import QUICK, in_empty_folder
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from slowly import slowly
from torch import Tensor, nn
from torch.utils.data import Dataset
from toys import CLASSES, FEATURES, Toy, toy_data

import flt
from flt.api import Result
from flt.api import train as train_cfg
from flt.cli.main import main
from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.engines.process_group import ProcessGroup
from flt.run.compose import compose_config, load_config
from flt.server.callback import FedCallback
from flt.server.federator import Federator

SHORT = ("local.steps=3",)
X = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def fresh(kind: type[pl.LightningModule] = Toy) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def clients(dataset: Any = None, **settings: Any) -> list[ClientSpec]:
    return flt.partition(toy_data(60) if dataset is None else dataset, **{"alpha": 5.0, "clients": 3, **settings})


def fit(module: pl.LightningModule, shares: Sequence[ClientSpec] = (), algo: str = "fedit", **settings: Any) -> Result:
    given = {"rounds": 2, "batch_size": 4, "progress": False, "overrides": SHORT, **settings}
    return flt.fit(module, shares or clients(), algo, **given)


class Own(pl.LightningModule):
    """A user's module with its own optimiser, schedule, logs and buffers, which takes batches as dicts."""

    rates: list[float] = []

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch["x"]), batch["label"])
        self.log("my_loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_acc", (self(batch["x"]).argmax(-1) == batch["label"]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        Own.rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]  # one optimiser


def rows() -> list[dict[str, Any]]:
    data = toy_data(60)
    return [{"x": data[i][0], "label": data[i][1], "author": i % 4} for i in range(len(data))]


def as_dicts() -> Any:
    return rows()


def as_datasets() -> Any:
    return datasets.Dataset.from_list([{**row, "x": row["x"].tolist()} for row in rows()]).with_format("torch")


class Pairs(Dataset):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return toy_data(60)[i][0], int(toy_data(60)[i][1])


def test_ten_lines_yield_a_module_metrics_and_an_adapter(folder: Path) -> None:
    module = fresh()
    result = flt.fit(module, clients(), "hafl", rounds=2, overrides=SHORT, progress=False)
    assert result.module is module
    assert result.metrics["round"] == 2
    assert 0 <= result.metrics["round/val_acc"] <= 1
    assert [metrics["round"] for metrics in result.round_metrics] == [1, 2]
    assert result.path == Path("lightning_logs/hafl/version_0")
    assert [path.name for path in folder.iterdir()] == ["lightning_logs"]


def test_the_module_lists_its_public_names_and_nothing_else() -> None:
    assert dir(flt) == sorted(flt.__all__)
    assert {"fit", "predict"} <= set(dir(flt))
    assert all(callable(getattr(flt, name)) for name in dir(flt))


def test_clients_are_shown_in_a_line_and_without_positions() -> None:
    data = JobData([0] * 9000, np.arange(5000), np.arange(5000, 5100), task="sst2")
    assert repr(ClientSpec(3, (data,))) == "ClientSpec(id=3, data=(JobData('sst2', 5000 examples),), rank=None)"
    assert repr(data.but(task="")) == "JobData(5000 examples)"


@pytest.mark.parametrize("algo", ["hafl", *slowly("fedit", "scaffold")])
def test_the_adapter_loads_on_a_fresh_copy_of_the_module(algo: str) -> None:
    result = fit(fresh(), algo=algo)
    model = PeftModel.from_pretrained(fresh(), result.exported).eval()
    torch.testing.assert_close(model(X), result.module(X), rtol=0, atol=1e-6)
    assert not torch.allclose(model(X), fresh()(X), atol=1e-3)


def test_flora_without_anything_to_evaluate_leaves_the_model_of_the_last_round() -> None:
    import safetensors.torch

    result = fit(fresh(), clients(held_out=0.0), "flora")
    assert not any(key.startswith("round/") for key in result.metrics)
    model = fresh()
    model.load_state_dict(safetensors.torch.load_file(result.exported / "model.safetensors"))
    torch.testing.assert_close(model(X), result.module(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [as_dicts, as_datasets])
def test_a_user_s_own_module_trains_as_it_is(make: Callable[[], Any]) -> None:
    Own.rates.clear()
    module = fresh(Own)
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    result = fit(module, clients(make()))
    assert {"clients/fit_my_loss", "round/val_acc", "clients/val_acc"} <= set(result.metrics)
    assert Own.rates == [0.1, 0.05, 0.025] * 6
    for name, value in module.named_buffers():
        assert torch.equal(value, buffers[name]), name
    after = dict(module.named_parameters())
    assert torch.equal(after["body.0.base_layer.weight"], before["body.0.weight"])
    assert not torch.equal(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize("make", [Pairs, lambda: toy_data(60)], ids=["map-style", "TensorDataset"])
def test_pairs_of_input_and_label_will_do(make: Callable[[], Any]) -> None:
    assert fit(fresh(), clients(make()), rounds=1).metrics["round"] == 1


def labels_of(client: ClientSpec) -> list[int]:
    (job,) = client.data
    return [rows()[i]["label"].item() for i in (*job.train, *job.held_out)]


MODES: dict[str, tuple[dict[str, Any], Callable[[list[ClientSpec]], bool]]] = {
    "labels": ({"by": "label", "alpha": 0.1}, lambda made: len(set(labels_of(made[0]))) < CLASSES),
    "shards": ({"by": "label", "alpha": None, "shards": 1}, lambda made: len(set(labels_of(made[0]))) <= 2),
    "quantity": ({"by": None, "alpha": 0.5}, lambda made: len({len(c.data[0].train) for c in made}) == 3),
    "iid": ({"by": None, "alpha": None}, lambda made: {len(c.data[0].train) for c in made} == {16}),
    "a column": ({"by": "author", "alpha": None, "clients": None}, lambda made: len(made) == 4),
    "a column for fewer": ({"by": "author", "alpha": None, "clients": 2}, lambda made: len(made) == 2),
}


@pytest.mark.parametrize("make", [as_dicts, as_datasets])
@pytest.mark.parametrize(("settings", "holds"), MODES.values(), ids=MODES)
def test_partition_deals_as_its_table_says(
    settings: dict[str, Any], holds: Callable[[list[ClientSpec]], bool], make: Callable[[], Any]
) -> None:
    made = clients(make(), **settings)
    together = [int(i) for client in made for job in client.data for i in (*job.train, *job.held_out)]
    assert sorted(together) == list(range(60))
    assert holds(made)


@pytest.mark.parametrize(
    ("dataset", "settings", "named"),
    [
        (as_dicts, {"by": "who"}, "by=who: .* allowed is author, label, x"),
        (as_datasets, {"by": "who"}, "by=who: .* allowed is x, label, author"),
        (Pairs, {"by": "author"}, "by=author: allowed is label"),
        (as_dicts, {"clients": 61}, "clients=61: allowed is at most 60"),
        (list, {}, "clients=3: allowed is at most 0"),
    ],
    ids=["dicts", "datasets", "pairs", "too many clients", "no examples"],
)
def test_partition_refuses_what_cannot_be_dealt(dataset: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        clients(dataset(), **settings)


def tensors(module: nn.Module, part: str) -> list[str]:
    return sorted({name.split(".lora_")[0] for name, _ in module.named_parameters() if part in name})


@pytest.mark.parametrize(
    ("settings", "adapted", "head"),
    [
        ({}, ["fc1", "fc2"], "head"),
        ({"target_modules": ["fc2"]}, ["fc2"], "head"),
        ({"target_modules": ("fc1", "head"), "head": "fc2"}, ["fc1", "head"], "fc2"),
        ({"head": "none"}, ["fc1", "fc2"], None),
    ],
    ids=["default", "targets", "another head", "no head"],
)
def test_layers_and_head_are_those_that_were_named(
    settings: dict[str, Any], adapted: list[str], head: str | None
) -> None:
    module, start = fresh(), dict(fresh().named_parameters())
    fit(module, rounds=1, **settings)
    assert tensors(module, ".lora_A.") == adapted
    kept = {name: value for name, value in module.named_parameters() if ".lora_" not in name}
    moved = {
        name.split(".")[0] for name, v in kept.items() if not torch.equal(v, start[name.replace("base_layer.", "")])
    }
    assert moved == ({head} if head else set())


def test_a_module_that_holds_peft_layers_keeps_them() -> None:
    module = fresh()
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=1, target_modules=["fc2"]), module)
    result = fit(module)
    assert tensors(module, ".lora_A.") == ["fc2"]
    assert module.fc2.lora_A["default"].weight.shape[0] == 3
    model = PeftModel.from_pretrained(fresh(), result.exported).eval()
    torch.testing.assert_close(model(X), module(X), rtol=0, atol=1e-6)


class Trained(Toy):
    """A user's module that doesn't evaluate."""

    validation_step = pl.LightningModule.validation_step


def test_a_module_that_does_not_evaluate_has_no_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    result = fit(fresh(Trained), progress=True)
    assert not any("acc" in key for key in result.metrics)
    assert "clients/fit_train_loss" in result.metrics
    assert "adapter" in capsys.readouterr().out


class Counting(pl.Callback):
    """A callback whose state shows whether two fits share it."""

    began: list[int] = []

    def __init__(self) -> None:
        self.batches, self.seen = 0, {"batches": [0]}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Counting.began.append(self.batches + self.seen["batches"][0])

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1
        self.seen["batches"][0] += 1


def test_each_fit_has_copies_of_the_callbacks() -> None:
    Counting.began.clear()
    callback = Counting()
    fit(fresh(), callbacks=[callback])
    assert Counting.began == [0] * 6
    assert (callback.batches, callback.seen) == (0, {"batches": [0]})


def test_callbacks_and_loggers_of_lightning_work_in_every_fit(folder: Path) -> None:
    logger = CSVLogger(folder / "logs", name="mine")
    stop = EarlyStopping("val_loss", patience=0, min_delta=1e9, check_on_train_epoch_end=False)
    overrides = ("local.steps=null", "local.epochs=5")
    watch = LearningRateMonitor("step")
    result = fit(fresh(), callbacks=[stop, watch], logger=logger, overrides=overrides, batch_size=16)
    with next((folder / "logs").rglob("metrics.csv")).open() as file:
        logged = list(csv.DictReader(file))
    rates = [row for row in logged if row.get("lr-AdamW")]  # of every step
    assert len(rates) == sum(metrics["clients/steps"] for metrics in result.round_metrics)
    steps = [int(row["step"]) for row in rates]
    assert steps == sorted(set(steps))
    assert [float(row["round/val_acc"]) for row in logged if row.get("round/val_acc")] == [
        metrics["round/val_acc"] for metrics in result.round_metrics
    ]
    batches = sum(-(-len(client.data[0].train) // 16) for client in clients())
    assert result.round_metrics[0]["clients/steps"] == 2 * batches  # patience ends every fit after its second epoch
    assert not list(result.path.glob("events*"))


class Rounds(FedCallback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_round_end(self, federator: Federator) -> None:
        federator.log({"mine/rounds": len(self.seen)})
        self.seen.append(federator.round)


def test_the_module_goes_back_to_the_device_that_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.device] = []
    to = Toy.to
    monkeypatch.setattr(Toy, "to", lambda self, device: moved.append(device) or to(self, device))
    elsewhere = ProcessGroup()
    elsewhere.device = torch.device("cpu", 0)
    monkeypatch.setattr("flt.engines.launcher.ProcessGroup", lambda: elsewhere)
    fit(fresh())
    assert [str(device) for device in (moved[0], moved[-1])] == ["cpu:0", "cpu"]


def test_callbacks_of_the_federation_leave_figures() -> None:
    callback = Rounds()
    result = fit(fresh(), callbacks=[callback])
    assert callback.seen == [1, 2]
    assert [metrics["mine/rounds"] for metrics in result.round_metrics] == [0, 1]


def generators() -> tuple[bytes, Any, bytes]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index]  # a tuple


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fl_tac", *slowly("flora", "fedit", "hafl", "scaffold")])
def test_the_global_generators_are_left_as_they_were(algo: str) -> None:
    module, shares = fresh(), clients()
    before = generators()
    fit(module, shares, "fedit" if algo == "fl_tac" else algo)
    assert generators() == before
    train_cfg(load_config([f"algo={algo}", *(f"{key}={value}" for key, value in QUICK.items())]))
    assert generators() == before


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_global_seed_or_on_what_was_trained_before() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(fit(fresh(), clients()).module.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_validation_test_and_collate_of_the_user_are_used() -> None:
    sizes = []

    def collate(batch: list[Any]) -> Any:
        sizes.append(len(batch))
        return torch.utils.data.default_collate(batch)

    data = {"one": toy_data(10, seed=1), "two": toy_data(20, seed=2)}
    result = fit(fresh(), validation=data, test=toy_data(7), collate_fn=collate)
    assert {"task/one/val_acc", "task/two/val_acc", "round/val_acc", "test/acc"} <= set(result.metrics)
    assert {10, 20, 7} <= set(sizes)


@pytest.mark.parametrize(
    ("shares", "settings", "named"),
    [
        ([], {}, "clients="),
        ("twice", {}, "clients=0: allowed is an id of its own"),
        ("once", {"algo": "nope"}, "algo=nope: allowed is c2a, central"),
        ("once", {"rounds": 0}, "rounds=0"),
        ("once", {"head": "no"}, "adapter.head=no"),
        ("once", {"target_modules": ["no"]}, "adapter.target_modules=no"),
        ("once", {"overrides": ["local.nope=1"]}, "local.nope=1"),
    ],
    ids=["no clients", "one id twice", "recipe", "rounds", "head", "targets", "override"],
)
def test_a_mistake_is_one_line_and_leaves_no_file(
    shares: Any, settings: dict[str, Any], named: str, folder: Path
) -> None:
    made = {"once": clients(), "twice": clients() + copy.copy(clients())}.get(shares, []) if shares else []
    with pytest.raises(InputError, match=named) as error:
        flt.fit(fresh(), made, **{"algo": "fedit", "progress": False, **settings})
    assert "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


def test_processes_meet_after_the_checkpoint_and_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    monkeypatch.setattr(ProcessGroup, "assert_same_round", lambda self, rounds: met.append(rounds))
    fit(fresh(), rounds=1, overrides=["name=met"])
    fit(fresh(), rounds=2, overrides=["name=met", "resume=last"])
    assert met == [0, 1]


def saved(result: Result) -> dict[str, Any]:
    return yaml.safe_load((result.path / "config.yaml").read_text())


def test_a_run_on_own_data_names_neither_digits_nor_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    result = fit(fresh(Own), clients(as_dicts()), rounds=1, progress=True)
    assert saved(result)["data"] == {"name": "own"}
    assert saved(result)["model"] == {"name": "Own", "adapt_layers": "all"}
    shown = capsys.readouterr().out
    assert "fedit on own data  rounds 1-1  clients 3" in shown
    logged = b"".join(path.read_bytes() for path in result.path.glob("events*"))
    for name in (b"digits", b"embedded"):
        assert name not in logged
        assert name.decode() not in shown


def test_a_whole_configuration_loses_the_sections_of_other_data_too() -> None:
    cfg = load_config(["algo=fedit", "rounds=1", "local.steps=1", "model.quantise=8bit"])
    result = flt.fit(fresh(), clients(), cfg, progress=False)
    assert saved(result)["data"] == {"name": "own"}
    assert saved(result)["model"] == {"name": "Toy", "adapt_layers": "all", "quantise": "8bit"}


def older(path: Path) -> None:
    """Puts the default sections of data and model into a run's configuration, as earlier versions did."""
    cfg, whole = yaml.safe_load((path / "config.yaml").read_text()), compose_config(["algo=fedit"])
    cfg |= {key: OmegaConf.to_container(whole[key]) for key in ("data", "model")}
    (path / "config.yaml").write_text(yaml.safe_dump(cfg))


@pytest.mark.parametrize("by", [None, older], ids=["this version", "an older version"])
@pytest.mark.slow
def test_a_resume_goes_on_with_the_same_bits(by: Callable[[Path], None] | None) -> None:
    whole = fit(fresh(), rounds=2)
    first = fit(fresh(), rounds=1, overrides=[*SHORT, "name=parts"])
    if by is not None:
        by(first.path)
    second = fit(fresh(), rounds=2, overrides=[*SHORT, "name=parts", "resume=last"])
    assert second.path == first.path
    assert saved(second)["data"] == {"name": "own"}
    for name, value in whole.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], value), name


def test_the_command_line_does_not_go_on_with_own_data(capsys: pytest.CaptureFixture[str]) -> None:
    result = fit(fresh(), rounds=1)
    before = (result.path / "config.yaml").read_bytes()
    assert main(["train", "algo=fedit", "rounds=2", f"resume={result.path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: resume={result.path}: ")
    assert 'flt.fit(..., overrides=["resume=last"])' in line
    assert (result.path / "config.yaml").read_bytes() == before
