"""Whether a stack of jobs computes what each job would compute alone: asked of the model, once, with real batches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flt.client.trainer import LocalTrainer
from flt.core.timeout import ClientTimeoutError
from flt.data.examples import PADDED
from flt.data.stores import IGNORED
from flt.engines.batched import shortcut as first_token
from flt.engines.batched.batches import Frame, Unstackable, joined
from flt.engines.batched.module import StackedJob, StackedModule
from flt.engines.batched.shortcut import Shortcut
from flt.models.module import ClientModule

_log = logging.getLogger(__name__)
JOBS = 3
"""On as many jobs it is tried."""
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 0.1}
"""Of a tensor's gradient, relative to its norm; far above rounding, far below another job's or example's gradient."""
NEGLIGIBLE = 1e-4
"""Gradients smaller than that part of the job's whole gradient are rounding."""


def verify_stacking(local_trainer: LocalTrainer, jobs: Sequence[StackedJob], stacked: StackedModule) -> Shortcut | None:
    """What may be left out, without which the stack then computes; None: nothing.

    Args:
        local_trainer: Whose module trains them alone; afterwards another job's tensors are in it.
        jobs: The first of the stack's.
        stacked: What trains them together.

    Raises:
        Unstackable: The gradients of the jobs' first batches differ, or the model draws random numbers.
    """
    module, stack = local_trainer.module, stacked.stack
    batches = {i: next(iter(local_trainer.loader(job.data.training_set, job.seed))) for i, job in enumerate(jobs)}
    frame, padding = joined(batches, stacked.steps.padding), stacked.steps.padding
    first = type(module) is ClientModule and not any(_is_single(batch) for batch in batches.values())
    # elsewhere a call costs more than the padding of a small batch, and nobody has measured it
    padded = module.device.type == "cpu" and "attention_mask" in frame.inputs
    with _autocast(local_trainer):
        alone = [_alone(local_trainer, job, batches[i], list(stack.trained)) for i, job in enumerate(jobs)]
        for shortcut in first_token.shortcuts(cast(nn.Module, module.model), first, padded):
            stack.shortcut = shortcut
            try:
                _check(local_trainer, alone, stacked, _with_padding(frame, padding) if shortcut.packed else frame)
                return shortcut
            except ClientTimeoutError:
                raise
            except Exception as error:  # whatever a model raises that wants all tokens
                _log.debug("%s can't be left out: %s", shortcut, error)
        stack.shortcut = None
        _check(local_trainer, alone, stacked, frame)
    return None


def _is_single(batch: Mapping[str, Tensor]) -> bool:
    """Texts of one token, which tell nothing of what a head would read of longer ones."""
    return "input_ids" in batch and batch["input_ids"].shape[1] < 2


def _with_padding(frame: Frame, padding: int) -> Frame:
    """The frame with a quarter more places in each row, all of them padding, so that there is enough to be left out."""
    shape, known = frame.inputs["attention_mask"].shape, {"input_ids": padding, **PADDED}
    width = (0, shape[1] // 4 + 1)
    inputs = {
        name: F.pad(value, width, value=known[name]) if value.shape == shape else value
        for name, value in frame.inputs.items()
    }
    labels = frame.labels if frame.labels.dim() == 2 else F.pad(frame.labels, width, value=IGNORED)
    return dataclasses.replace(frame, inputs=inputs, labels=labels)


def _autocast(local_trainer: LocalTrainer) -> torch.autocast:
    return torch.autocast(
        local_trainer.module.device.type, torch.bfloat16, enabled=local_trainer.settings.precision != "32-true"
    )


def _check(
    local_trainer: LocalTrainer, alone: Sequence[Sequence[Tensor]], stacked: StackedModule, frame: Frame
) -> None:
    stack, device = stacked.stack, local_trainer.module.device
    before = _drawn(device)
    with stack.computing():
        losses = stacked.loss(frame)
    if any(not torch.equal(one, other) for one, other in zip(before, _drawn(device), strict=True)):
        raise Unstackable("the model draws random numbers, for each job its own")
    if stack.shortcut is not None and stack.shortcut.packed and not stack.tokens.came_packed:
        raise Unstackable("the blocks saw padding all the same")
    names = list(stack.trained)
    together = _gradients(losses.sum(), [stack.tensors[name] for name in names])
    for i, expected in enumerate(alone):
        found = [stack.part(i, name, value) for name, value in zip(names, together, strict=True)]
        _compare(names, found, expected, TOLERANCE[local_trainer.settings.precision])


def _alone(
    local_trainer: LocalTrainer, job: StackedJob, batch: Mapping[str, Tensor], names: Sequence[str]
) -> list[Tensor]:
    module = local_trainer.module
    assert isinstance(module, ClientModule)
    local_trainer.put(job.tensors)
    loss, _ = module._loss({name: value.to(module.device) for name, value in batch.items()})
    return _gradients(loss, [local_trainer.parameters[name] for name in names])


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _compare(names: Sequence[str], found: Sequence[Tensor], alone: Sequence[Tensor], tolerance: float) -> None:
    whole = torch.stack([gradient.norm() for gradient in alone]).norm()
    for name, one, other in zip(names, found, alone, strict=True):
        if not (one - other).norm() <= tolerance * other.norm() + NEGLIGIBLE * whole:
            raise Unstackable(f"the gradient of {name} depends on which other jobs are computed beside")


def _drawn(device: torch.device) -> list[Tensor]:
    """The states of the generators that a model may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
