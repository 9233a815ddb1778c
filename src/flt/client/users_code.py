"""The user's module and callbacks: what is refused before the first fit, and what each fit gets."""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning
import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, ModelPruning, ProgressBar
from torchmetrics import Metric

from flt.client.settings import LocalSettings
from flt.core.errors import InputError, ModuleError

LIGHTNING = Path(lightning.__file__).parent
BY_LIGHTNING = (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""Errors that Lightning raises for a wrong module or callback, besides its own MisconfigurationException."""
_C = TypeVar("_C", bound=pl.Callback)
_log = logging.getLogger(__name__)

REFUSED: dict[type[pl.Callback], str] = {
    BatchSizeFinder: "flt makes the batches, of the size batch_size",
    ModelPruning: "it replaces the weights by others, which the server doesn't know",
}
"""Callback that can't work in a fit -> the reason."""


def check_users_code(module: pl.LightningModule, callbacks: Sequence[pl.Callback], settings: LocalSettings) -> None:
    """Refuses what can't work in any fit, and says which callbacks are left out of the fits.

    Args:
        module: The module.
        callbacks: The user's Lightning callbacks.
        settings: Settings of the fits.

    Raises:
        InputError: A callback can't work in a fit, or the module optimises by itself and a setting leaves that to
            Lightning.
    """
    for callback in callbacks:
        for kind, why in REFUSED.items():
            if isinstance(callback, kind):
                raise InputError.of("callbacks", type(callback).__name__, "callbacks without it", why)
    if left_out := sorted({type(callback).__name__ for callback in callbacks if isinstance(callback, ProgressBar)}):
        _log.warning("%s: left out of the fits, because flt shows the progress of the rounds", ", ".join(left_out))
    if not module.automatic_optimization:
        why = f"{type(module).__name__} has automatic_optimization=False, and its training_step has to do this"
        for key, value, allowed in (("clip", settings.clip, None), ("accumulate", settings.accumulate, 1)):
            if value != allowed:
                raise InputError.of(f"local.{key}", value, str(allowed or "null"), why)
    copies(callbacks)


def copies(callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
    """Returns copies of the user's callbacks for one fit. Progress bars are left out, because flt has its own.

    Raises:
        ModuleError: A callback can't be copied.
    """
    made = []
    for callback in callbacks:
        if isinstance(callback, ProgressBar):
            continue
        try:
            made.append(copy.deepcopy(callback))
        except Exception as error:  # whatever a callback holds decides which one
            allowed = "a callback that copy.deepcopy can copy, because each fit gets its own"
            raise ModuleError.of("callbacks", type(callback).__name__, allowed, str(error)) from error
    return made


@contextlib.contextmanager
def users_code(module: pl.LightningModule) -> Iterator[None]:
    """Context manager of a fit or an evaluation, in which code of the user runs.

    Resets the module's metrics first, because earlier fits and evaluations may have left values in them. An error with
    which Lightning refuses the module or a callback becomes one line.

    Raises:
        ModuleError: Lightning refuses the module or a callback.
    """
    for sub in module.modules():
        if isinstance(sub, Metric):
            sub.reset()
    try:
        yield
    except (MisconfigurationException, *BY_LIGHTNING) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not isinstance(error, MisconfigurationException) and not raised_in.is_relative_to(LIGHTNING):
            raise  # the user's own code, or torch's
        allowed = "a module and callbacks that Lightning's Trainer accepts"
        raise ModuleError.of("module", type(module).__name__, allowed, str(error)) from error


class UsersFit(pl.Callback):
    """Adapts the fit of a user's module.

    Args:
        validates: Whether the client has held-out examples. If not, the fit goes on where a schedule or a callback
            waits for a metric of validation.
    """

    def __init__(self, validates: bool) -> None:
        self.validates = validates

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a fit begins; silences progress bars."""
        silence_bars(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called when training begins; without validation, a missing metric no longer ends the fit."""
        waiting: list[Any] = [*trainer.lr_scheduler_configs, *of_kind(trainer, EarlyStopping)]
        for waits in waiting if not self.validates else ():
            waits.strict = False


def silence_bars(trainer: pl.Trainer, *_: Any, **__: Any) -> None:
    """Silences the progress bars that a module's ``configure_callbacks`` has made."""
    for bar in of_kind(trainer, ProgressBar):
        with contextlib.suppress(NotImplementedError):  # Lightning's base class shows nothing
            bar.disable()


def of_kind(trainer: pl.Trainer, kind: type[_C]) -> list[_C]:
    """Returns the callbacks of a Trainer that are of a kind."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set when the Trainer is made
    return [callback for callback in callbacks if isinstance(callback, kind)]


@contextlib.contextmanager
def attributes_kept(module: pl.LightningModule) -> Iterator[None]:
    """Context manager of a fit, after which the module's attributes are those from before.

    Without it, a counter or a learning rate that a fit sets would pass from one client to the next. What a fit puts
    into a list stays in it. Parameters and buffers are no attributes in this sense.
    """
    theirs = vars(pl.LightningModule()).keys()  # such as the Trainer
    before = {name: value for name, value in vars(module).items() if name not in theirs}
    hparams = dict(module.hparams)
    try:
        yield
    finally:
        for name in vars(module).keys() - theirs - before.keys():
            delattr(module, name)
        vars(module).update(before)
        module.hparams.clear()
        module.hparams.update(hparams)


def overrides(module: pl.LightningModule, method: str) -> bool:
    """Returns whether a module has its own version of a method of LightningModule."""
    return getattr(type(module), method) is not getattr(pl.LightningModule, method)
