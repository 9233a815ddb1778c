"""Evaluation and prediction with a user's own LightningModule, which a run of ``flt.fit`` has trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import Dataset

from flt.client.evaluator import Evaluator
from flt.client.settings import LocalSettings
from flt.client.users_code import overrides
from flt.core.errors import InputError
from flt.core.quiet import keyboard_interrupts_pass, quiet, without_fast_path
from flt.core.typed import first_line
from flt.export.load import load
from flt.export.places import exported_models
from flt.inference.models import device_of
from flt.run.stored import export_of

Collate = Callable[[list[Any]], Any] | None


def check_no_base(base: object) -> None:
    """Checks that no base is named beside a user's module, which holds its own.

    Raises:
        InputError: A base is named.
    """
    if base is not None:
        raise InputError.of("base", base, "nothing with module=", "the module holds its own base")


def evaluate_module(
    module: Any, run: str | Path, dataset: Any, group: str | int | None, batch_size: int, device: str,
    root: str | Path, collate_fn: Collate,
) -> dict[str, float]:  # fmt: skip
    """Returns the metrics that a user's module logs in ``validation_step``, with the weights of a run.

    Raises:
        InputError: The export doesn't fit the module, or an argument is wrong.
    """
    evaluator = _evaluator(module, run, dataset, group, batch_size, device, root, collate_fn)
    with isolate_rng():
        return evaluator.evaluate(dataset)


def predict_module(
    module: Any, run: str | Path, dataset: Any, group: str | int | None, batch_size: int, device: str,
    root: str | Path, collate_fn: Collate,
) -> Any:  # fmt: skip
    """Returns what a user's module returns from ``predict_step``, with the weights of a run.

    Returns:
        One tensor if the batches' outputs are tensors, with the examples along the first axis. Else a list of what the
        module returns for each batch.

    Raises:
        InputError: The export doesn't fit the module, an argument is wrong, or the module has no ``predict_step`` and
            its ``forward`` doesn't take a batch.
    """
    evaluator = _evaluator(module, run, dataset, group, batch_size, device, root, collate_fn)
    with quiet(), keyboard_interrupts_pass(), without_fast_path(), isolate_rng():
        trainer = evaluator.trainer([], [])
        # in the order of the data set; for an evaluation, texts would be sorted by length
        loader = torch.utils.data.DataLoader(dataset, batch_size, collate_fn=collate_fn)
        try:
            found: Any = trainer.predict(evaluator.module, loader)
        except Exception as error:  # whatever forward does with a whole batch decides which one
            if overrides(evaluator.module, "predict_step"):
                raise
            name, why = type(evaluator.module).__name__, "it has no predict_step, so forward got the whole batch"
            allowed = "a module whose predict_step takes a batch of the data set"
            raise InputError.of("module", name, allowed, f"{why}: {first_line(error)}") from error
    return torch.cat(found) if found and all(isinstance(one, Tensor) and one.dim() for one in found) else found


def _evaluator(
    module: Any, run: str | Path, dataset: Any, group: str | int | None, batch_size: int, device: str,
    root: str | Path, collate_fn: Collate,
) -> Evaluator:  # fmt: skip
    if not isinstance(module, pl.LightningModule):
        raise InputError.of("module", type(module).__name__, "a LightningModule, as given to flt.fit")
    if not isinstance(dataset, Dataset) and not hasattr(dataset, "__getitem__") or isinstance(dataset, str):
        raise InputError.of("data", type(dataset).__name__, "a data set, if module= is given")
    if batch_size < 1:
        raise InputError.of("batch_size", batch_size, "an integer >= 1")
    place, models = device_of(device), exported_models(export_of(run, root))
    wanted = list(models) if group is None else [str(group), f"group_{group}", f"client_{group}"]
    named = [name for name in models if name in wanted]
    if len(named) != 1:
        raise InputError.of("group", group, list(models), "there are several models" if group is None else "")
    loaded: Any = load(models[named[0]], module)
    loaded = loaded if isinstance(loaded, pl.LightningModule) else loaded.get_base_model()  # out of peft's model
    return Evaluator(loaded.to(place), LocalSettings(eval_batch_size=batch_size), collate_fn)
