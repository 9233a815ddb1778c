"""One Lightning fit of several jobs: the LightningModule of a stack, and each job's local callbacks inside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from flt.client.fit import LocalFit
from flt.data.clients import JobData
from flt.data.stores import IGNORED
from flt.engines.batched.adapters import Stack
from flt.engines.batched.batches import Frame, Steps, Unstackable
from flt.models.module import ClientModule

HOOKS = frozenset(
    {"on_train_start", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_end"}
)
"""Hooks of a local callback that are called for each job by itself."""


@dataclasses.dataclass
class StackedJob:
    """One job inside a fit of several.

    Attributes:
        fit: Its parameters are views of the stack, so what a callback changes in place changes the stack.
        data: Its examples.
        seed: Of its batches.
        tensors: What was put into the module for it, by name.
        metrics: Its figures until now.
        callbacks: Its own local callbacks.
        optimizer: Looks like the one that it would have alone: its parameters, and the learning rates that count.
    """

    fit: LocalFit
    data: JobData
    seed: int
    tensors: dict[str, Tensor]
    metrics: dict[str, float]
    callbacks: list[Callback] = dataclasses.field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None

    def check(self) -> None:
        """Refuses callbacks that want to be called where a fit of several jobs calls nobody.

        Raises:
            Unstackable: One does.
        """
        for callback in self.callbacks:
            for hook in (name for name in dir(Callback) if name.startswith(("on_", "setup", "teardown"))):
                if hook not in HOOKS and getattr(type(callback), hook) is not getattr(Callback, hook):
                    raise Unstackable(f"{type(callback).__name__} has {hook}, which is called for one job at a time")

    def ended(self, steps: int) -> None:
        """Called after its last step: its parameters leave the stack, which may move on without it."""
        for parameter in self.fit.trained.values():
            parameter.data, parameter.grad = parameter.data.clone(), None
        self.fit.steps = steps


class StackedModule(pl.LightningModule):
    """Trains the stack of several jobs' adapters on one backbone.

    The loss is the sum of the jobs' own losses, each the mean over its own examples, so that each job's gradient is
    what it would be alone.

    Args:
        inner: The site's module; hidden in a tuple, so that its backbone isn't among this module's parameters.
        stack: What trains.
        steps: The jobs' batches.
        clip: Largest norm of a job's gradient; None: unclipped.
    """

    def __init__(self, inner: ClientModule, stack: Stack, steps: Steps, clip: float | None) -> None:
        super().__init__()
        self.inner, self.stack, self.steps, self.clip = (inner,), stack, steps, clip
        self.stacked = nn.ParameterList(stack.tensors.values())
        self.losses: list[tuple[Frame, int, Tensor]] = []
        """Of each frame: itself without its tensors, its step, and the jobs' losses."""

    def training_step(self, batch: list[Frame], batch_idx: int) -> Tensor:
        """The sum () of the jobs' losses; all frames but the last are differentiated here."""
        for parameter in self.stack.trained.values():
            parameter.grad = None  # not by Lightning, which does it between this and the backward pass
        for i, frame in enumerate(batch):
            losses = self.loss(frame) / self.steps.accumulate
            kept = dataclasses.replace(frame, inputs={}, labels=frame.labels.new_empty(0))
            self.losses.append((kept, batch_idx, losses.detach() * self.steps.accumulate))
            if i + 1 < len(batch):
                losses.sum().backward()
        return losses.sum()

    def loss(self, frame: Frame) -> Tensor:
        """The loss of each job in a frame (jobs,), as the module has it: the mean over what has a label."""
        frame = frame.to(self.inner[0].device)
        rows = frame.labels.shape[0] * frame.labels.shape[1]
        with self.stack.forward(frame.jobs, rows, frame.inputs.get("attention_mask")):
            logits, labels = self.inner[0](**frame.inputs), frame.labels
        if labels.dim() == 3:  # of tokens: each is the target of the one before
            labels, logits = F.pad(labels, (0, 1), value=IGNORED)[..., 1:], logits.float()
        labels = labels.reshape(len(frame.jobs), -1)
        each = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.flatten(), reduction="none")
        return each.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)

    def transfer_batch_to_device(self, batch: list[Frame], device: torch.device, dataloader_idx: int) -> list[Frame]:
        """The frames as they are: each goes to the device when its turn comes."""
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The module's optimiser over the stack: it works on each entry by itself."""
        return self.inner[0].optimizer.build(list(self.stack.trained.values()))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Does nothing: gradients of earlier frames are there already."""

    @torch.no_grad()
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Scales each job's gradient by its own norm, as ``torch.nn.utils.clip_grad_norm_`` does one job's."""
        gradients = [parameter.grad for parameter in self.stack.trained.values() if parameter.grad is not None]
        if self.clip is None or not gradients:
            return
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)  # (jobs,)
        scale = (self.clip / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    def train_losses(self, jobs: int) -> list[float]:
        """Each job's mean loss over its last pass, weighted by examples: what Lightning would have logged for it."""
        totals, counts = torch.zeros(jobs), [0] * jobs
        for frame, step, losses in self.losses:
            for job, size, loss in zip(frame.jobs, frame.sizes, losses.float().cpu(), strict=True):
                if step >= self.steps.last_pass[job]:
                    totals[job] += loss * size
                    counts[job] += size
        return [float(total) / count for total, count in zip(totals, counts, strict=True)]


class _JobTrainer:
    """The Trainer as one job's callbacks see it: with the job's own optimiser."""

    def __init__(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer | None) -> None:
        self.trainer, self.optimizers = trainer, [optimizer]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


class JobCallbacks(Callback):
    """Calls every job's own callbacks, with what they would see if the job were alone.

    Args:
        jobs: In the order of the stack.
        stack: What trains.
        steps: How many steps each job takes.
    """

    def __init__(self, jobs: Sequence[StackedJob], stack: Stack, steps: Steps) -> None:
        self.jobs, self.stack, self.steps = jobs, stack, steps
        self.active = list(range(len(jobs)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Called when the train begins: each job gets an optimiser to look at, whose learning rates count."""
        for job in (job for job in self.jobs if job.callbacks):
            job.optimizer = pl_module.inner[0].optimizer.build(list(job.fit.trained.values()))
        self._call("on_train_start", trainer, pl_module)
        optimizers = [job.optimizer for job in self.jobs if job.optimizer is not None]
        if optimizers:  # one plan, so one factor of the learning rate
            for ours, theirs in zip(trainer.optimizers[0].param_groups, optimizers[0].param_groups, strict=True):
                ours["lr"] = theirs["lr"]

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Called after the backward pass of a step's last batches: each job finds its own gradients."""
        self._bind()
        self._call("on_after_backward", trainer, pl_module)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Called before each optimiser step, and before the gradients are clipped."""
        for job in (self.jobs[i] for i in self.active):
            seen: Any = _JobTrainer(trainer, job.optimizer)
            own: Any = job.optimizer  # a job with callbacks has one
            for callback in job.callbacks:
                callback.on_before_optimizer_step(seen, pl_module.inner[0], own)
        self._take_back()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Called after each step: jobs whose last one it was leave."""
        self._call("on_train_batch_end", trainer, pl_module, *args)
        done = trainer.global_step
        ending = [i for i in self.active if self.steps.counts[i] == done]
        self._call("on_train_end", trainer, pl_module, among=ending)
        for i in ending:
            self.jobs[i].ended(done)
            self.active.remove(i)

    def _call(
        self, hook: str, trainer: pl.Trainer, pl_module: StackedModule, *args: Any, among: Sequence[int] | None = None
    ) -> None:
        for job in (self.jobs[i] for i in (self.active if among is None else among)):
            seen: Any = _JobTrainer(trainer, job.optimizer)
            for callback in job.callbacks:
                getattr(callback, hook)(seen, pl_module.inner[0], *args)

    def _bind(self) -> None:
        """The gradients of each job's parameters are views of the stack's."""
        for i in (i for i in self.active if self.jobs[i].callbacks):
            for name, parameter in self.jobs[i].fit.trained.items():
                gradient = self.stack.tensors[name].grad
                parameter.grad = None if gradient is None else self.stack.part(i, name, gradient)

    def _take_back(self) -> None:
        """What a callback has put in the place of a gradient goes into the stack's."""
        for i in (i for i in self.active if self.jobs[i].callbacks):
            for name, parameter in self.jobs[i].fit.trained.items():
                gradient = self.stack.tensors[name].grad
                if gradient is None or parameter.grad is None:
                    continue
                place = self.stack.part(i, name, gradient)
                if parameter.grad.data_ptr() != place.data_ptr():
                    place.copy_(parameter.grad)
