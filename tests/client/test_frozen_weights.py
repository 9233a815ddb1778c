"""Only what the plan trains may change in a fit, whoever changes it, and however."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import in_empty_folder
from forked import forked
from lightning.pytorch import Callback
from stacks import federator_of
from torch import nn
from toys import Toy, toy_clients, toy_data, toy_federator

import flt
from flt.core.errors import InputError, ModuleError
from flt.engines.batched.engine import BatchedEngine, BatchedSettings
from flt.engines.distributed import DistributedEngine
from flt.engines.process_group import ProcessGroup
from flt.engines.sharded import ShardedEngine
from flt.models.module import ClientModule
from flt.server.failure_policy import FailurePolicy


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


class ThawsAll(Toy):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.requires_grad_(True)
        return super().configure_optimizers()


class ThawsLater(Toy):
    def on_train_start(self) -> None:
        self.fc1.requires_grad_(True)  # the optimiser has all parameters


class ThawsInAStep(Toy):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.fc1.requires_grad_(True)
        return super().training_step(batch, batch_idx)


class ThawsAndFreezes(ThawsAll):
    def on_train_end(self) -> None:
        self.requires_grad_(False)


class Old(torch.optim.SGD):
    """Steps the way optimisers did long ago."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]  # torch's has overloads
        loss = closure()
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.data.sub_(0.1 * p.grad.data)
        return loss


class OldOptimiser(Toy):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.requires_grad_(True)
        return Old(self.parameters(), lr=0.1)


class Writes(Toy):
    """Changes one number, without a gradient."""

    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            self.fc1.base_layer.weight[3, 2] += 0.01


class Flips(Toy):
    """Exchanges rows, which leaves the sum of all values as it was."""

    def on_train_epoch_end(self) -> None:
        self.fc1.base_layer.weight.data = self.fc1.base_layer.weight.data.flip(0)


class Assigns(Toy):
    def on_train_epoch_end(self) -> None:
        self.fc1.base_layer.weight.data = self.fc1.base_layer.weight.data * 1.01


class Clamps(Toy):
    """As in a Wasserstein GAN."""

    def on_before_zero_grad(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            parameter.data.clamp_(-0.1, 0.1)


class WritesInValidation(Toy):
    def on_validation_start(self) -> None:
        self.fc1.base_layer.weight.data.add_(0.01)


class Replaces(Toy):
    def on_train_start(self) -> None:
        self.fc1.base_layer.weight = nn.Parameter(self.fc1.base_layer.weight.detach().clone())


class MakesLayers(Toy):
    def setup(self, stage: str) -> None:
        self.more = nn.Linear(2, 2)


class Fails(ThawsAll):
    """Fails after some steps."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 2:
            raise RuntimeError("out of luck")
        return super().training_step(batch, batch_idx)


class Thaws(Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.fc1.requires_grad_(True)


CHANGED, REPLACED = "the frozen weights have changed in the fit", "the fit has made, replaced or removed it"
WRONG: dict[str, tuple[type[Toy], list[Callback], str]] = {
    "thawed in configure_optimizers": (ThawsAll, [], CHANGED),
    "thawed in on_train_start": (ThawsLater, [], CHANGED),
    "thawed in a step": (ThawsInAStep, [], CHANGED),
    "thawed, then frozen again": (ThawsAndFreezes, [], CHANGED),
    "thawed by a callback": (Toy, [Thaws()], CHANGED),
    "an optimiser that writes through .data": (OldOptimiser, [], CHANGED),
    "one number written": (Writes, [], CHANGED),
    ".data assigned": (Assigns, [], CHANGED),
    "rows exchanged": (Flips, [], CHANGED),
    "clamped through .data": (Clamps, [], CHANGED),
    "written in validation": (WritesInValidation, [], CHANGED),
    "thawed before the fit fails": (Fails, [], CHANGED),
    "replaced": (Replaces, [], REPLACED),
    "layers made in setup": (MakesLayers, [], REPLACED),
}


@pytest.mark.parametrize(
    "keys",
    [(), pytest.param(("min_updates=1", "max_retries=2"), marks=pytest.mark.slow)],
    ids=["strict", "tolerant"],
)
@pytest.mark.parametrize("name", WRONG)
def test_a_fit_that_changes_what_the_plan_does_not_train_ends_the_run(
    name: str, keys: tuple[str, ...], folder: Path
) -> None:
    """Also where failures are tolerated, because no later client may be trained on the changed weights."""
    kind, callbacks, why = WRONG[name]
    with pytest.raises(
        ModuleError, match=rf"^client 0=(fc1.base_layer|more)\.(weight|bias): {why}; allowed is"
    ) as caught:
        flt.fit(
            kind(), flt.partition(toy_data(60), clients=3, alpha=5.0), "fedit", 1, batch_size=4, callbacks=callbacks,
            progress=False, overrides=["local.steps=3", *keys],
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())


class Harmless(Toy):
    """Gives the frozen weights to its optimiser, thaws what no optimiser has, and writes what is there already."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)
        optimizer.add_param_group({"params": [p for p in self.parameters() if not p.requires_grad]})
        return optimizer

    def on_train_end(self) -> None:
        self.requires_grad_(True)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.clone())


def test_what_changes_nothing_is_no_change() -> None:
    shares = flt.partition(toy_data(60), clients=3, alpha=5.0)
    result = flt.fit(Harmless(), shares, "fedit", 2, progress=False, overrides=["local.steps=2"])
    assert len(result.round_metrics) == 2


def test_the_whole_model_may_change_where_the_plan_trains_it() -> None:
    shares = flt.partition(toy_data(60), clients=3, alpha=5.0)
    assert flt.fit(ThawsAll(), shares, "fedavg", 1, progress=False, overrides=["local.steps=2"]).round_metrics


def test_a_factor_that_the_plan_freezes_is_frozen_too() -> None:
    shares = flt.partition(toy_data(60), clients=3, alpha=5.0)
    with pytest.raises(ModuleError, match=r"^client 0=fc1.base_layer|^client 0=fc1.lora_A"):
        flt.fit(ThawsAll(), shares, "ffa_lora", 1, progress=False, overrides=["local.steps=2"])


class Freezes(Toy):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.fc1.requires_grad_(False)
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_a_module_that_freezes_what_the_plan_trains_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    shares = flt.partition(toy_data(60), clients=3, alpha=5.0)
    flt.fit(Freezes(), shares, "fedit", 2, progress=False, overrides=["local.steps=2"])
    line = "Freezes or a callback freezes fc1.lora_A.default.weight, which the plan trains: it stays as it was"
    assert [record.getMessage() for record in caplog.records].count(line) == 1


def thawing(engine: str, strategy: str, processes: ProcessGroup) -> None:
    """A federation of a module of flt's kind that thaws its first block, by an engine."""
    federator = federator_of("fedit", sizes=(8, 8), held_out=3)
    local_trainer = federator.engine.local_trainer

    class Thawed(ClientModule):
        def configure_optimizers(self) -> Any:
            self.requires_grad_(True)
            return self.optimizer.build(list(self.parameters()))

    local_trainer.module.__class__ = Thawed
    local_trainer.frozen_weights.foreign = True
    if engine == "sharded":
        federator.engine = ShardedEngine(local_trainer, federator.clients, processes, 1, strategy)
    else:
        federator.engine = DistributedEngine(federator.engine, processes)
    federator.fit()


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "strategy"), [("distributed", ""), ("sharded", "ddp"), ("sharded", "fsdp")])
def test_processes_that_thaw_the_base_all_end_with_one_line(engine: str, strategy: str, tmp_path: Path) -> None:
    found = forked(functools.partial(thawing, engine, strategy), 2, tmp_path)
    assert any(str(error).startswith("ModuleError: client ") and CHANGED in error for error in found), found
    assert all(isinstance(error, str) for error in found)


def test_a_stack_whose_local_callback_writes_to_the_base_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    federator = federator_of("fedit")
    local_trainer = federator.engine.local_trainer
    federator.engine = BatchedEngine(local_trainer, federator.clients, BatchedSettings(jobs=2))
    base = local_trainer.parameters[local_trainer.layout.names(["base"])[0]]
    train = BatchedEngine._train

    def writes(self: Any, *args: Any, **settings: Any) -> Any:
        with torch.no_grad():
            base.add_(0.1)
        return train(self, *args, **settings)

    monkeypatch.setattr(BatchedEngine, "_train", writes)
    with pytest.raises(InputError, match=CHANGED):
        federator.fit()


def test_values_are_read_only_where_foreign_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of flt's own module must stay as quick as they are."""
    monkeypatch.setattr("flt.client.frozen_weights._probes", lambda tensor: pytest.fail("values were read"))
    federator_of("fedit").fit()
    with pytest.raises(pytest.fail.Exception):
        toy_federator().fit()


def test_the_sums_are_computed_once_for_all_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[nn.Parameter] = []
    from flt.client import frozen_weights

    known = frozen_weights._digest
    monkeypatch.setattr(frozen_weights, "_digest", lambda parameter: sums.append(parameter) or known(parameter))
    federator = toy_federator(clients=toy_clients(3), rounds=2)
    federator.fit()
    assert len(sums) == len(federator.server.layout.names(["base"]))


def test_a_module_error_is_raised_under_every_policy() -> None:
    def fails() -> None:
        raise ModuleError("wrong")

    with pytest.raises(ModuleError):
        FailurePolicy(min_updates=1, max_retries=3).guard((0, 0), fails)
