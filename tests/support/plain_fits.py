"""A plain Lightning ``Trainer.fit``, to which a federation of one client and one round must be equal bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from methods import job_seed
from torch import Tensor
from torch.utils.data import Dataset

import flt
from flt.api import Result
from flt.client.isolation import seed_everything
from flt.client.loader import loader
from flt.client.settings import LocalSettings
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.adapters.none import NoAdapterSettings
from flt.models.adapters.none import attach as attach_none

WHOLE_MODEL, ADAPTER = ("fedavg", "plan.lr_factor=1"), ("fedit",)


def federated_and_plain(
    make: Callable[[], pl.LightningModule],
    dataset: Dataset,
    method: tuple[str, ...] = WHOLE_MODEL,
    callbacks: Callable[[], Sequence[pl.Callback]] = tuple,
    collate: Any = None,
    keys: Sequence[str] = (),
    head: str | None = None,
    **settings: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Result]:
    """The weights after one round of one client, those after a plain fit on the same batches, and the run's result.

    Args:
        make: Makes the module, with weights from the global random generator.
        dataset: All examples. The client holds a fifth out.
        method: Name of the recipe, and settings of its parts.
        callbacks: Makes the callbacks.
        collate: As in ``flt.fit``.
        keys: Further overrides.
        head: As in ``flt.fit``.
        settings: Settings of the fit, by the names of LocalSettings.
    """
    local = LocalSettings(**{"steps": 5, "batch_size": 8, **settings})
    clients = flt.partition(dataset, by=None, clients=1)
    torch.manual_seed(0)
    overrides = [*method[1:], f"local.steps={local.steps or 'null'}", f"local.epochs={local.epochs or 'null'}"]
    overrides += [f"local.accumulate={local.accumulate}", f"local.clip={local.clip or 'null'}"]
    overrides += [f"precision={local.precision}", *keys]
    result = flt.fit(
        make(), clients, method[0], 1, batch_size=local.batch_size, callbacks=list(callbacks()), collate_fn=collate,
        head=head, progress=False, overrides=overrides,
    )  # fmt: skip
    torch.manual_seed(0)
    module = make()
    module.configure_model()
    if method is ADAPTER:
        attach(module, LoraSettings(head=head), 0)
    else:
        attach_none(module, NoAdapterSettings(head=head), 0)
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    _fit(module, clients[0].data[0], local, collate, callbacks())
    return _weights(result.module), _weights(module), result


def _fit(module: pl.LightningModule, data: Any, local: LocalSettings, collate: Any, callbacks: Any) -> None:
    seed = job_seed(0, 0)
    module.train()
    seed_everything(seed, module.device)
    trainer = pl.Trainer(
        accelerator="cpu", logger=TensorBoardLogger("plain"), enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        num_sanity_val_steps=0, callbacks=list(callbacks), precision=local.precision,  # type: ignore[arg-type]  # a str
        accumulate_grad_batches=local.accumulate, gradient_clip_val=local.clip, log_every_n_steps=1,
        default_root_dir=Path("plain"), max_steps=local.steps or -1, max_epochs=local.epochs or -1,
    )  # fmt: skip
    held_out = data.validation_set(None)
    trainer.fit(
        module, loader(data.training_set, local, collate, seed),
        loader(held_out, local, collate, None) if len(held_out) else None,
    )  # fmt: skip


def _weights(module: pl.LightningModule) -> dict[str, Tensor]:
    return copy.deepcopy({name: parameter.detach() for name, parameter in module.named_parameters()})
