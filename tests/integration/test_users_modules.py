"""What a user's own LightningModule may be, and finds in its fits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from commands import in_empty_folder
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from toys import Toy, toy_data

import flt
from flt.api import Result
from flt.core.errors import InputError
from flt.server.callback import FedCallback
from flt.server.federator import Federator


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def fit(module: pl.LightningModule, rounds: int = 1, overrides: tuple[str, ...] = (), **settings: Any) -> Result:
    shares = flt.partition(toy_data(60), alpha=5.0, clients=3)
    keys = ("local.steps=3", *overrides)
    return flt.fit(module, shares, "fedit", rounds, batch_size=4, progress=False, overrides=keys, **settings)


class Wrapped(Toy):
    """Holds a peft model, the way its documentation makes one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.body: Any = nn.Sequential(self.fc1, nn.ReLU(), self.fc2, nn.ReLU())
        del self.fc1, self.fc2
        if settings:
            self.body = get_peft_model(self.body, LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"], **settings))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_the_adapter_of_a_wrapped_peft_model_loads_on_the_module_without_peft() -> None:
    torch.manual_seed(0)
    module = Wrapped(bias="none")
    plain = Wrapped()
    plain.head.load_state_dict(module.head.state_dict())
    base = {name.replace(".base_layer", ""): value for name, value in module.body.base_model.model.state_dict().items()}
    plain.body.load_state_dict({name: value for name, value in base.items() if "lora" not in name})
    result = fit(module, head="head")
    x = toy_data(5).tensors[0]
    loaded = PeftModel.from_pretrained(plain, str(result.exported)).eval()
    torch.testing.assert_close(loaded(x), result.module(x), atol=1e-6, rtol=0)
    assert not torch.equal(loaded(x), plain.head(torch.zeros(5, 10)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"use_dora": True}, "DoRA"), ({"lora_bias": True}, "a bias of LoRA")],
    ids=["dora", "bias"],
)
def test_what_peft_can_do_and_a_federation_can_not_is_refused(
    settings: dict[str, Any], named: str, folder: Path
) -> None:
    with pytest.raises(InputError, match=f"^module.body.*{named}"):
        fit(Wrapped(**settings))
    assert not list(folder.iterdir())


def test_two_active_adapters_are_refused() -> None:
    module = Wrapped(bias="none")
    module.body.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    module.body.base_model.set_adapter(["default", "second"])
    with pytest.raises(InputError, match="several active adapters"):
        fit(module)


class Plateau(Toy):
    """A schedule that wants a figure of validation inside the fit."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


class Draws(Toy):
    """Writes to TensorBoard by itself."""

    def on_train_start(self) -> None:
        self.logger.experiment.add_scalar("mine", 1.0)  # type: ignore[union-attr]  # TensorBoard's


@pytest.mark.parametrize("kind", [Plateau, Draws])
def test_a_module_finds_what_it_would_find_in_a_trainer_of_its_own(kind: type[Toy]) -> None:
    assert "round/val_acc" in fit(kind()).metrics


def test_checkpoints_of_the_users_callback_do_not_lie_among_the_runs() -> None:
    result = fit(Toy(), callbacks=[ModelCheckpoint(every_n_train_steps=1)])
    assert list((result.path / "fits").rglob("*.ckpt"))
    assert not list((result.path / "checkpoints").rglob("*.ckpt"))


class Tally(FedCallback):
    """Keeps a list, and leaves a figure of NumPy's."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, [0]

    def on_round_end(self, federator: Federator) -> None:
        self.seen = [*self.seen, self.seen[-1] + self.step]
        federator.log({f"tally{self.step}": torch.tensor(float(self.seen[-1])).numpy()[()]})

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


@pytest.mark.slow
def test_two_callbacks_of_one_class_keep_their_own_state_over_a_resume() -> None:
    first = fit(Toy(), 1, callbacks=[Tally(1), Tally(10)])
    grown = fit(Toy(), 3, ("resume=last",), callbacks=[Tally(1), Tally(10)])
    assert grown.path == first.path
    assert [(m["tally1"], m["tally10"]) for m in grown.round_metrics] == [(1, 10), (2, 20), (3, 30)]


class Stops(FedCallback):
    """Stands for a kill after the last round and before the export."""

    def on_fit_end(self, federator: Federator) -> None:
        raise RuntimeError("killed")


@pytest.mark.slow
def test_an_older_export_is_never_taken_for_that_of_a_longer_run() -> None:
    short = fit(Toy(), 1)
    before = (short.exported / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RuntimeError, match="killed"):
        fit(Toy(), 2, ("resume=last",), callbacks=[Stops()])
    assert not short.exported.exists()
    resumed = fit(Toy(), 2, ("resume=last",))
    assert (resumed.exported / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.slow
def test_fewer_rounds_than_were_run_are_refused() -> None:
    fit(Toy(), 2)
    with pytest.raises(InputError, match=r"^rounds=1: 2 have been run"):
        fit(Toy(), 1, ("resume=last",))
    assert len(fit(Toy(), 2, ("resume=last",)).round_metrics) == 2  # the refusal has written nothing


@pytest.mark.parametrize("there_before", [True, False], ids=["resumed", "new"])
def test_a_refused_first_round_removes_the_folder_of_a_new_run_only(there_before: bool, folder: Path) -> None:
    resume = ("resume=last",) if there_before else ()
    if there_before:
        shutil.rmtree(fit(Toy(), 1).path / "checkpoints")  # as if killed before its first one
    with pytest.raises(InputError, match="^update of client 0"):
        fit(Toy("sgd", lr=1e30), 1, resume)
    assert (folder / "lightning_logs/fedit/version_0").exists() == there_before
