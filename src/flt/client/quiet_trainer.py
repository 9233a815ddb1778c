"""Lightning Trainer that prints nothing, writes no files of its own and doesn't handle signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from flt.client.resident import NoSignals
from flt.core.quiet import cached_entry_points


def quiet_trainer(
    device: torch.device, callbacks: list[pl.Callback], loggers: Sequence[Logger], **arguments: Any
) -> pl.Trainer:
    """Builds a Trainer for one fit or one evaluation.

    Every fit needs a new Trainer. A used Trainer would train no step, because ``fit`` doesn't reset the step count.

    Args:
        device: Device of the module.
        callbacks: The Trainer's callbacks.
        loggers: The Trainer's loggers.
        arguments: Further arguments of the Trainer.
    """
    with cached_entry_points():
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            callbacks=callbacks,
            logger=list(loggers) or False,
            log_every_n_steps=1 if loggers else None,  # a fit may be shorter than Lightning's default of 50 steps
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **arguments,
        )
    trainer._signal_connector = NoSignals()  # type: ignore[assignment]  # Lightning has no setting for this
    return trainer
