"""A LightningModule that asks for all that a plain ``Trainer.fit`` has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from brought_modules import Brought
from toys import FEATURES


class Asks(Brought):
    """Asks its Trainer and its logger for whatever they have in a plain fit, in every hook."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(1, FEATURES)

    def _ask(self, fits: bool = True) -> None:
        trainer: Any = self.trainer
        logger: Any = self.logger
        logger.experiment.add_scalar("mine", math.pi, self.global_step)
        logger.experiment.add_histogram("weights", self.head.weight, self.current_epoch)
        assert (Path(logger.log_dir).is_dir(), len(self.loggers)) == (True, 1)
        assert (trainer.is_global_zero, trainer.world_size, trainer.global_rank, self.local_rank) == (True, 1, 0, 0)
        assert (trainer.datamodule, trainer.checkpoint_callback, trainer.early_stopping_callback) == (None,) * 3
        assert (self.device.type, self.hparams.width) == ("cpu", 8)  # type: ignore[attr-defined]
        self.print("said")
        if fits:
            assert trainer.max_steps == trainer.estimated_stepping_batches == 5
            assert trainer.num_training_batches == len(trainer.train_dataloader)
            assert trainer.val_dataloaders is not None
            assert (trainer.log_every_n_steps, self.lr_schedulers()) == (1, None)
            assert isinstance(self.optimizers(), torch.optim.Optimizer)
            assert isinstance(trainer.callback_metrics, dict)
            assert isinstance(trainer.progress_bar_metrics, dict)
            assert self.all_gather(torch.ones(1)).shape == (1,)
            assert self.global_step <= 5

    def on_fit_start(self) -> None:
        self.logger.log_hyperparams({"own": 1})  # type: ignore[union-attr]  # there is one

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._ask()
        loss = super().training_step(batch, batch_idx)
        self.log("all", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True, rank_zero_only=False)
        self.log_dict({"several": loss, "more": 1.0})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._ask(fits=self.trainer.state.fn == "fit")
        super().validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self._ask()
        assert "all_epoch" in self.trainer.callback_metrics
