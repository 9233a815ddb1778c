"""The plan's factor holds in every step, whatever sets the learning rates of a fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from brought_modules import Brought, ClipsByItself, Manual
from commands import in_empty_folder
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from slowly import mostly_slowly
from torch.optim import lr_scheduler
from toys import toy_data

import flt
from flt.core.errors import InputError

FACTOR, STEPS = 0.3, 6


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def chain(optimizer: Any) -> Any:
    return lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(optimizer, 0.1), lr_scheduler.StepLR(optimizer, 2)])


def nested(optimizer: Any) -> Any:
    inner = lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer, 0.5), lr_scheduler.ExponentialLR(optimizer, 0.9)], [2]
    )
    return lr_scheduler.SequentialLR(optimizer, [inner, lr_scheduler.CosineAnnealingLR(optimizer, 4)], [4])


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "ChainedScheduler": chain,
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS + 1),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, STEPS, power=2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0, min_lr=0.02),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 2)], [2]),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "a smallest rate": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.05),
    "a smallest rate, restarted": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, eta_min=0.05),
    "nested": nested,
    "a mean of the weights": lambda o: torch.optim.swa_utils.SWALR(o, 0.02, 3),
    "transformers: linear": lambda o: transformers.get_linear_schedule_with_warmup(o, 2, STEPS),
    "transformers: cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, 2, STEPS),
    "transformers: inverse root": lambda o: transformers.get_inverse_sqrt_schedule(o, 2),
    "transformers: stable, then decay": lambda o: transformers.get_wsd_schedule(o, 1, 2, num_stable_steps=2),
}
QUICK = ("StepLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR", "a smallest rate", "transformers: linear")


class Rates(Callback):
    """The rates that a step uses."""

    found: list[list[float]]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        Rates.found.append([float(group["lr"]) for group in optimizer.param_groups])


class Scheduled(Brought):
    make: Callable[[Any], Any]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)
        schedule = type(self).make(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "monitor": "train_loss"},
        }


def rates(
    make: Callable[[], Any], factor: float, *callbacks: Callback, keys: tuple[str, ...] = ()
) -> list[list[float]]:
    """The rates of every step of a fit."""
    Rates.found = []
    torch.manual_seed(0)
    shares = flt.partition(toy_data(60), by=None, clients=1)
    overrides = [f"plan.lr_factor={factor}", *(keys or [f"local.steps={STEPS}"])]
    flt.fit(
        make(), shares, "fedavg", 1, batch_size=8, callbacks=[*callbacks, Rates()], progress=False, overrides=overrides
    )  # fmt: skip
    return Rates.found


def assert_multiplied(make: Callable[[], Any], *callbacks: Callback, keys: tuple[str, ...] = ()) -> None:
    given, used = (rates(make, factor, *callbacks, keys=keys) for factor in (1.0, FACTOR))
    assert len(given) >= STEPS
    for one, other in zip(given, used, strict=True):
        assert other == pytest.approx([FACTOR * rate for rate in one], rel=1e-6)


def test_the_table_has_every_schedule_of_torch() -> None:
    kinds = {
        name for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and hasattr(kind, "step") and kind.__module__ == lr_scheduler.__name__
    }  # fmt: skip
    assert kinds - {"LRScheduler", "_LRScheduler"} <= set(SCHEDULES)


@pytest.mark.parametrize("name", mostly_slowly(SCHEDULES, QUICK))
def test_the_factor_holds_in_every_step_of_a_schedule(name: str) -> None:
    assert_multiplied(type("Own", (Scheduled,), {"make": staticmethod(SCHEDULES[name])}))


class TwoSchedules(Brought):
    """Manual optimisation with two optimisers, one of which has a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]  # two
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]  # one

    def configure_optimizers(self) -> Any:
        first, second = torch.optim.SGD(self.body.parameters(), 0.1), torch.optim.Adam(self.head.parameters(), 0.01)
        return [first, second], [lr_scheduler.CyclicLR(first, 0.01, 0.1, 3)]


class ByHand(Brought):
    """Multiplies the rate in every step, and has a schedule that Lightning doesn't know."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.hidden = [lr_scheduler.StepLR(optimizer, 2, 0.5)]
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.9

    def on_train_batch_end(self, *_: Any) -> None:
        self.hidden[0].step()


class OwnObject:
    """A schedule that is no class of torch's."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.steps = optimizer, 0

    def step(self) -> None:
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Own(Scheduled):
    make = OwnObject  # type: ignore[assignment]  # a class does

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()


class Groups(Brought):
    """Rates of two groups, one of them a tensor."""

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.body.parameters(), "lr": torch.tensor(0.02)}, {"params": self.head.parameters()}]
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        return [optimizer], [
            {"scheduler": lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, 3, cycle_momentum=False), "interval": "step"}
        ]


class Lbfgs(Brought):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=1)


@pytest.mark.parametrize("make", [Brought, TwoSchedules, Manual, ClipsByItself, ByHand, Own, Groups, Lbfgs])
def test_the_factor_holds_whoever_sets_the_rates(make: Callable[[], Any]) -> None:
    assert_multiplied(make)


def test_the_factor_holds_where_a_callback_sets_the_rates() -> None:
    epochs = ("local.epochs=3", "local.steps=null")
    assert_multiplied(Brought, StochasticWeightAveraging(0.05, 1, annealing_epochs=2), keys=epochs)
    assert_multiplied(
        type("N", (Scheduled,), {"make": SCHEDULES["StepLR"]}), StochasticWeightAveraging(0.05, 1), keys=epochs
    )


class Found(Brought):
    lr = 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def test_the_factor_multiplies_a_rate_that_was_found() -> None:
    assert_multiplied(Found, LearningRateFinder(num_training_steps=20))


class Itself(Brought):
    def configure_optimizers(self) -> Any:
        return transformers.Adafactor(self.parameters(), lr=None, relative_step=True)


def test_an_optimiser_without_a_rate_is_refused_where_there_is_a_factor() -> None:
    with pytest.raises(InputError, match=r"^plan.lr_factor=0.3: Adafactor has no learning rate"):
        rates(Itself, FACTOR)


@pytest.mark.parametrize("name", ["StepLR", "LambdaLR", "CosineAnnealingLR", "transformers: linear"])
def test_a_proportional_schedule_has_the_bits_of_a_smaller_rate(name: str) -> None:
    class Smaller(Scheduled):
        make = SCHEDULES[name]

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1 * FACTOR)
            return [optimizer], [{"scheduler": type(self).make(optimizer), "interval": "step"}]

    assert rates(type("Own", (Scheduled,), {"make": staticmethod(SCHEDULES[name])}), FACTOR) == rates(Smaller, 1.0)
