"""Local trainer that trains nothing. Its updates have the sizes of real ones."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flt.client.evaluator import Watch
from flt.client.fit import LocalFit
from flt.client.trainer import OWN_MODULES, LocalTrainer
from flt.data.clients import JobData
from flt.models.causal import CausalModule
from flt.protocol.entries import buffers
from flt.protocol.messages import Ids, Payload, Plan, Update
from flt.protocol.state import ClientState, ServerState

TYPICAL = 0.9166666865348816
"""Value of every metric. Its text has 18 characters, the most common length of a float32 number in JSON."""
STEP = 0.01
"""Standard deviation of the random change of a weight."""
SHRINKING = 0.5
"""Factor on the weights of a fit that makes the tails of the products B A smaller."""


class DryTrainer(LocalTrainer):
    """Replaces the steps of a fit by one random change of the trained weights, and each evaluation by typical numbers.

    All else is the run's own code: payloads are unpacked and installed, the recipe's local callbacks measure scores of
    random gradients, remove components and report, and updates and client states are built from the results. A message
    therefore has the names, shapes, ids and numbers of steps and examples of the run's message. Only values that
    training alone can give differ, and of these, only the digits of numbers in JSON (metrics, ids of components that
    scores select) and what a recipe decides by values (bits of quantised components, self-pruning) change the size.
    The changes are random so that clusterings, scores and decompositions have something to work with.

    Attributes:
        shrinks: Whether the changes make weights smaller. A client that prunes itself (HetLoRA) then does so in every
            round, and otherwise in none.
        evaluated: Names of the metrics that an evaluation logs.
        fitted: Names of the metrics that a fit logs.
        seconds: Time that the fits have taken so far.
    """

    shrinks = False
    seconds = 0.0
    evaluated: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.module) in OWN_MODULES:
            perplexity = ("val_perplexity",) if isinstance(self.module, CausalModule) else ()
            self.evaluated, self.fitted = ("val_loss", "val_acc", *perplexity), ("train_loss",)

    def local_fit(self, data: JobData, payload: Payload, private: ClientState, seed: int) -> tuple[Update, ClientState]:
        """Returns an update of the right sizes, and the client state; see :meth:`LocalTrainer.local_fit`."""
        began = time.perf_counter()
        fitted = super().local_fit(data, payload, private, seed)
        self.seconds += time.perf_counter() - began
        return fitted

    def evaluate(self, dataset: Dataset, watch: Watch | None = None) -> dict[str, float]:
        """Returns a typical number for each metric, or {} if there is no example."""
        return dict.fromkeys(self.evaluated, TYPICAL) if len(dataset) else {}  # type: ignore[arg-type]  # has a length

    def evaluate_group(
        self, state: ServerState, gid: int, dataset: Dataset, watch: Watch | None = None, head: str = ""
    ) -> dict[str, float]:
        """Returns a typical loss, also of a user's module, whose metrics aren't known. No weights are loaded."""
        return {"val_loss": TYPICAL, **self.evaluate(dataset)}

    def losses_without(
        self, data: JobData, held: Mapping[str, Ids], source: str, examples: int
    ) -> tuple[float, dict[str, Tensor]]:
        """Returns a random loss for each held component: nothing is evaluated."""
        generator = torch.Generator().manual_seed(len(data.train))
        return 0.0, {name: torch.rand(len(ids), generator=generator).double() for name, ids in held.items()}

    def steps(self, plan: Plan, data: JobData) -> int:
        """Returns the number of optimiser steps of a fit with this plan on these data."""
        if steps := plan.steps or self.settings.steps:
            return steps
        batches = len(self.loader(data.training_set, 0))
        return (self.settings.epochs or 1) * math.ceil(batches / self.settings.accumulate)

    def restore(self) -> None:
        """Gives the module the weights that it had before the dry run."""
        self.put({**self.base, **self.initial})
        self.buffers.put({})

    @torch.no_grad()
    def _train(self, fit: LocalFit, data: JobData, held_out: Dataset, seed: int) -> dict[str, float]:
        local = self.recipe.callbacks(fit)
        optimizer = self._optimizer(fit)
        trainer: Any = SimpleNamespace(
            optimizers=[optimizer], lr_scheduler_configs=[], callbacks=[], gradient_clip_val=self.settings.clip
        )
        fit.steps = self.steps(fit.payload.plan, data)
        generator = torch.Generator().manual_seed(seed)
        for callback in local:
            callback.on_train_start(trainer, self.module)
        for parameter in fit.trained.values():
            parameter.grad = _noise(parameter, generator)
        for _ in range(fit.steps):  # the steps after the first have no gradient; callbacks count them
            for callback in local:
                callback.on_before_optimizer_step(trainer, self.module, optimizer)
            for parameter in fit.trained.values():
                parameter.grad = None
        for parameter in fit.trained.values():
            self._change(parameter, fit.payload.round, generator)
        for callback in local:
            callback.on_train_end(trainer, self.module)
        fit.take_buffers(self._statistics(), self.recipe.buffers)
        fit.close(local)
        return {f"fit/{name}": TYPICAL for name in self.fitted}

    def _optimizer(self, fit: LocalFit) -> torch.optim.Optimizer:
        """Returns the module's optimiser, or an optimiser with torch's default rate if a user's module needs a Trainer.

        Only its learning rate is used: SCAFFOLD's clients send it.
        """
        if type(self.module) in OWN_MODULES:
            own: Any = self.module.configure_optimizers()
            return cast(torch.optim.Optimizer, own)
        return torch.optim.SGD(fit.trained.values())

    def _change(self, parameter: Tensor, done: int, generator: torch.Generator) -> None:
        if not parameter.is_floating_point():
            return
        size = STEP
        if self.shrinks:
            parameter.mul_(SHRINKING)
            size *= 0.1 ** min(done + 1, 30)  # less than what the shrinking takes away, in every round
        parameter.add_(_noise(parameter, generator), alpha=size)

    def _statistics(self) -> dict[str, Tensor]:
        """Returns the buffers that a fit would change: those of layers with running statistics in training mode."""
        norms = [name for name in self.layout.statistics if self.module.get_submodule(name).training]
        return {
            name: buffer.detach().cpu().clone()
            for name, buffer in buffers(self.module).items()
            if name.rpartition(".")[0] in norms
        }


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype).normal_(generator=generator).to(like.device)
