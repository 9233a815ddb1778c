"""LightningModule that trains several jobs in one fit, and the callback that calls each job's local callbacks."""

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
from flt.client.trainer import LocalTrainer
from flt.data.clients import JobData
from flt.data.stores import IGNORED
from flt.engines.batched.adapters import Stack
from flt.engines.batched.batches import JointBatch, Steps, Unstackable
from flt.models.module import ClientModule

JOB_HOOKS = frozenset(
    {"on_train_start", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_end"}
)
"""Hooks of local callbacks that are called in a fit of several jobs, once for each job."""


@dataclasses.dataclass
class StackedJob:
    """One job in a fit of several jobs.

    Attributes:
        fit: The job's local fit. Its parameters are views of the stack, so a callback that changes them in place also
            changes the stack.
        data: Examples of the job.
        seed: Seed of the job's batches.
        tensors: Adapter and head of the received model: name -> tensor.
        metrics: Metrics of the job so far.
        callbacks: Local callbacks of the job.
        optimizer: Optimiser that the job's callbacks receive. It contains the job's parameters and learning rates, and
            takes no step, because the stack has its own optimiser. None if the job has no callbacks.
    """

    fit: LocalFit
    data: JobData
    seed: int
    tensors: dict[str, Tensor]
    metrics: dict[str, float]
    callbacks: list[Callback] = dataclasses.field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None

    def check_callbacks(self) -> None:
        """Checks that the job's callbacks use only hooks that a fit of several jobs calls.

        Raises:
            Unstackable: A callback uses another hook.
        """
        for callback in self.callbacks:
            for hook in (name for name in dir(Callback) if name.startswith(("on_", "setup", "teardown"))):
                if hook not in JOB_HOOKS and getattr(type(callback), hook) is not getattr(Callback, hook):
                    raise Unstackable(f"{type(callback).__name__} has {hook}, which is called for one job at a time")

    def load(self, local_trainer: LocalTrainer) -> None:
        """Loads the job's model, as trained so far, into the resident module."""
        trained = {name: parameter.detach() for name, parameter in self.fit.trained.items()}
        local_trainer.put({**self.tensors, **trained})

    def measured_by(self, local_trainer: LocalTrainer) -> StackedJob:
        """Lets a trainer measure :meth:`LocalTrainer.losses_without` of the job. Returns the job."""

        def losses_without(source: str, examples: int) -> tuple[float, dict[str, Tensor]]:
            self.load(local_trainer)
            return local_trainer.losses_without(self.data, self.fit.payload.held, source, examples)

        self.fit.losses_without = losses_without
        return self

    def finish(self, steps: int) -> None:
        """Copies the job's parameters out of the stack, because the training of other jobs continues there.

        Called after the job's last step.

        Args:
            steps: Number of steps that the job has taken.
        """
        for parameter in self.fit.trained.values():
            parameter.data, parameter.grad = parameter.data.clone(), None
        self.fit.steps = steps


class StackedModule(pl.LightningModule):
    """Trains the stacked adapters and heads of several jobs on one backbone.

    The loss is the sum of the jobs' losses, and the loss of a job is the mean over its own examples. Each job therefore
    gets the same gradient as if it were trained alone.

    Args:
        inner: The resident module. The attribute ``inner`` is a tuple that contains the resident module, so that the
            resident module's parameters don't become parameters of the LightningModule.
        stack: The stacked tensors.
        steps: Joint batches of the jobs (:class:`JointBatch`), by optimiser step.
        clip: Largest norm of a job's gradient. If None, gradients aren't clipped.
    """

    def __init__(self, inner: ClientModule, stack: Stack, steps: Steps, clip: float | None) -> None:
        super().__init__()
        self.inner, self.stack, self.steps, self.clip = (inner,), stack, steps, clip
        self.stacked = nn.ParameterList(stack.tensors.values())
        self.losses: list[tuple[JointBatch, int, Tensor]] = []
        """For each joint batch so far: (joint batch without its tensors, number of the step, losses of its jobs)."""

    def training_step(self, batch: list[JointBatch], batch_idx: int) -> Tensor:
        """Returns a scalar: the sum of the jobs' losses on the last joint batch of a step.

        Also runs the forward and backward passes of the step's other joint batches. Lightning runs the backward pass of
        the last joint batch.
        """
        for parameter in self.stack.trained.values():
            parameter.grad = None  # not in optimizer_zero_grad, which Lightning calls after this method
        for i, joint in enumerate(batch):
            losses = self.loss(joint) / self.steps.accumulate
            kept = dataclasses.replace(joint, inputs={}, labels=joint.labels.new_empty(0))
            self.losses.append((kept, batch_idx, losses.detach() * self.steps.accumulate))
            if i + 1 < len(batch):
                losses.sum().backward()
        return losses.sum()

    def loss(self, joint: JointBatch) -> Tensor:
        """Returns the loss of each job, shape (jobs,). A job's loss is the mean over the job's labelled positions."""
        joint = joint.to(self.inner[0].device)
        rows = joint.labels.shape[0] * joint.labels.shape[1]
        with self.stack.forward(joint.jobs, rows, joint.inputs.get("attention_mask")):
            logits, labels = self.inner[0](**joint.inputs), joint.labels
        if labels.dim() == 3:  # labels of tokens: each token is the target of the token before it
            labels, logits = F.pad(labels, (0, 1), value=IGNORED)[..., 1:], logits.float()
        labels = labels.reshape(len(joint.jobs), -1)
        each = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.flatten(), reduction="none")
        return each.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)

    def transfer_batch_to_device(
        self, batch: list[JointBatch], device: torch.device, dataloader_idx: int
    ) -> list[JointBatch]:
        """Returns the joint batches unchanged. Each is moved to the device when its loss is computed."""
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns one optimiser for all jobs. flt's optimisers update each number independently of the others."""
        return self.inner[0].optimizer.build(list(self.stack.trained.values()))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Does nothing, because the gradients of the step's earlier joint batches are needed."""

    @torch.no_grad()
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clips each job's gradient by the norm of this gradient, as PyTorch's ``clip_grad_norm_`` does for one job."""
        gradients = [parameter.grad for parameter in self.stack.trained.values() if parameter.grad is not None]
        if self.clip is None or not gradients:
            return
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)  # (jobs,)
        scale = (self.clip / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    def train_losses(self, jobs: int) -> list[float]:
        """Returns each job's mean loss over its last epoch. Batches are weighted by their sizes, as in Lightning.

        Args:
            jobs: Number of jobs in the stack.
        """
        totals, counts = torch.zeros(jobs), [0] * jobs
        for joint, step, losses in self.losses:
            for job, size, loss in zip(joint.jobs, joint.sizes, losses.float().cpu(), strict=True):
                if step >= self.steps.last_epoch_start[job]:
                    totals[job] += loss * size
                    counts[job] += size
        return [float(total) / count for total, count in zip(totals, counts, strict=True)]


class _JobTrainer:
    """Trainer that one job's callbacks receive. Its ``optimizers`` contains the job's optimiser, not the stack's."""

    def __init__(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer | None) -> None:
        self.trainer, self.optimizers = trainer, [optimizer]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


class JobCallbacks(Callback):
    """Calls the local callbacks of every job, with the same arguments as if the job were trained alone.

    Args:
        jobs: Jobs in the order of the stack.
        stack: The stacked tensors.
        steps: Joint batches of the jobs.
    """

    def __init__(self, jobs: Sequence[StackedJob], stack: Stack, steps: Steps) -> None:
        self.jobs, self.stack, self.steps = jobs, stack, steps
        self.active = list(range(len(jobs)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Builds each job's optimiser. The stack's optimiser then adopts the learning rates that callbacks have set."""
        for job in (job for job in self.jobs if job.callbacks):
            job.optimizer = pl_module.inner[0].optimizer.build(list(job.fit.trained.values()))
        self._call("on_train_start", trainer, pl_module)
        optimizers = [job.optimizer for job in self.jobs if job.optimizer is not None]
        if optimizers:  # The jobs have the same plan, and therefore the same learning rates.
            for stacked, own in zip(trainer.optimizers[0].param_groups, optimizers[0].param_groups, strict=True):
                stacked["lr"] = own["lr"]

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Sets the gradients of each job's parameters; called after the last backward pass of a step."""
        self._bind_gradients()
        self._call("on_after_backward", trainer, pl_module)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Lets callbacks change gradients; called before each optimiser step and before gradients are clipped."""
        for job in (self.jobs[i] for i in self.active):
            trainer_of_job: Any = _JobTrainer(trainer, job.optimizer)
            own: Any = job.optimizer  # not None, since the job has callbacks
            for callback in job.callbacks:
                callback.on_before_optimizer_step(trainer_of_job, pl_module.inner[0], own)
        self._write_back()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Ends the jobs that have taken their last step; called after each step."""
        self._call("on_train_batch_end", trainer, pl_module, *args)
        done = trainer.global_step
        ending = [i for i in self.active if self.steps.counts[i] == done]
        self._call("on_train_end", trainer, pl_module, among=ending)
        for i in ending:
            self.jobs[i].finish(done)
            self.active.remove(i)

    def _call(
        self, hook: str, trainer: pl.Trainer, pl_module: StackedModule, *args: Any, among: Sequence[int] | None = None
    ) -> None:
        for job in (self.jobs[i] for i in (self.active if among is None else among)):
            trainer_of_job: Any = _JobTrainer(trainer, job.optimizer)
            for callback in job.callbacks:
                getattr(callback, hook)(trainer_of_job, pl_module.inner[0], *args)

    def _bind_gradients(self) -> None:
        """Sets the gradients of each job's parameters to views of the stack's gradients."""
        for i in (i for i in self.active if self.jobs[i].callbacks):
            for name, parameter in self.jobs[i].fit.trained.items():
                gradient = self.stack.tensors[name].grad
                parameter.grad = None if gradient is None else self.stack.part(i, name, gradient)

    def _write_back(self) -> None:
        """If a callback replaced a gradient by a new tensor, copies the new tensor into the stack's gradient."""
        for i in (i for i in self.active if self.jobs[i].callbacks):
            for name, parameter in self.jobs[i].fit.trained.items():
                gradient = self.stack.tensors[name].grad
                if gradient is None or parameter.grad is None:
                    continue
                target = self.stack.part(i, name, gradient)
                if parameter.grad.data_ptr() != target.data_ptr():
                    target.copy_(parameter.grad)
