"""Checks that the module permits stacking, and that each job gets the same gradients in a stack as alone."""

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
from flt.engines.batched.adapters import layers
from flt.engines.batched.batches import JointBatch, Unstackable, join_batches
from flt.engines.batched.module import StackedJob, StackedModule
from flt.engines.batched.shortcut import Shortcut, possible_shortcuts
from flt.models.causal import CausalModule
from flt.models.module import ClientModule
from flt.protocol.layout import TRAVELLING

_log = logging.getLogger(__name__)
VERIFIED_JOBS = 3
"""Largest number of jobs in a verification."""
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 0.1}
"""Precision -> largest allowed difference between two gradients of a tensor.

One gradient is computed in the stack, the other for the job alone. The difference is relative to the norm of
the second gradient. Rounding causes far smaller differences. If a gradient came from the wrong job or example, the
difference would be far larger.
"""
NEGLIGIBLE = 1e-4
"""Differences below this share of the norm of the job's whole gradient are allowed, since rounding causes them."""


def check_stackable(local_trainer: LocalTrainer, train: Sequence[str]) -> None:
    """Checks that the module and the user's callbacks permit stacking.

    Args:
        local_trainer: Trainer with the resident module and the callbacks.
        train: Roles of the tensors that are trained.

    Raises:
        Unstackable: The module or its callbacks don't permit stacking.
    """
    module = local_trainer.module
    if type(module) not in (ClientModule, CausalModule):
        raise Unstackable(f"{type(module).__name__} isn't flt's own module")
    if local_trainer.callbacks:
        raise Unstackable("your Lightning callbacks belong to the fit of one job")
    if local_trainer.client_aware:
        raise Unstackable(f"{type(local_trainer.client_aware[0]).__name__} computes with the figures of one client")
    if set(train) - set(TRAVELLING):
        raise Unstackable("the backbone itself changes")
    layers(module, local_trainer.layout)
    local_trainer.buffers.set_modes(train, local_trainer.recipe.buffers.frozen_in_eval)
    for sub in module.modules():
        if isinstance(sub, nn.modules.dropout._DropoutNd) and sub.p > 0 and sub.training:
            raise Unstackable("dropout draws anew for each job")
        if isinstance(sub, nn.modules.batchnorm._BatchNorm) and sub.training:
            raise Unstackable("a batch norm mixes the examples of a batch")
    if getattr(module.model, "_compiled_call_impl", None) is not None:
        raise Unstackable("the compiled model knows one job's layers")


def verify_stacking(local_trainer: LocalTrainer, jobs: Sequence[StackedJob], stacked: StackedModule) -> Shortcut | None:
    """Compares the gradients in the stack with those of each job alone, and finds the best shortcut.

    The gradients are those of each job's first batch. They are compared for one possible shortcut after another. The
    stack's attribute ``shortcut`` is set to the shortcut that is found.

    Args:
        local_trainer: Trainer with the resident module, which computes the gradients of each job alone. Afterwards, the
            module has the tensors of the last job.
        jobs: The first jobs of the stack.
        stacked: LightningModule that trains the whole stack.

    Returns:
        Among the shortcuts with right gradients, the one that saves most; None if no shortcut has right gradients.

    Raises:
        Unstackable: The gradients differ even without a shortcut, or the model draws random numbers.
    """
    module, stack = local_trainer.module, stacked.stack
    batches = {i: next(iter(local_trainer.loader(job.data.training_set, job.seed))) for i, job in enumerate(jobs)}
    joint, padding = join_batches(batches, stacked.steps.padding), stacked.steps.padding
    first = type(module) is ClientModule and not any(_is_single(batch) for batch in batches.values())
    # Only on CPUs: on other devices, packing a small batch takes longer than computing its padding.
    padded = module.device.type == "cpu" and "attention_mask" in joint.inputs
    with _autocast(local_trainer):
        alone = [_alone(local_trainer, job, batches[i], list(stack.trained)) for i, job in enumerate(jobs)]
        for shortcut in possible_shortcuts(cast(nn.Module, module.model), first, padded):
            stack.shortcut = shortcut
            try:
                _check(local_trainer, alone, stacked, _with_padding(joint, padding) if shortcut.packed else joint)
                return shortcut
            except ClientTimeoutError:
                raise
            except Exception as error:  # with a shortcut, a model that needs all tokens may raise any error
                _log.debug("%s can't be left out: %s", shortcut, error)
        stack.shortcut = None
        _check(local_trainer, alone, stacked, joint)
    return None


def _is_single(batch: Mapping[str, Tensor]) -> bool:
    """True if each text has a single token. Such texts can't show whether the head reads only the first token."""
    return "input_ids" in batch and batch["input_ids"].shape[1] < 2


def _with_padding(batch: JointBatch, padding: int) -> JointBatch:
    """Returns the batch with rows that padding has made a quarter longer, so that the batch is packed."""
    shape, known = batch.inputs["attention_mask"].shape, {"input_ids": padding, **PADDED}
    width = (0, shape[1] // 4 + 1)
    inputs = {
        name: F.pad(value, width, value=known[name]) if value.shape == shape else value
        for name, value in batch.inputs.items()
    }
    labels = batch.labels if batch.labels.dim() == 2 else F.pad(batch.labels, width, value=IGNORED)
    return dataclasses.replace(batch, inputs=inputs, labels=labels)


def _autocast(local_trainer: LocalTrainer) -> torch.autocast:
    return torch.autocast(
        local_trainer.module.device.type, torch.bfloat16, enabled=local_trainer.settings.precision != "32-true"
    )


def _check(
    local_trainer: LocalTrainer, alone: Sequence[Sequence[Tensor]], stacked: StackedModule, batch: JointBatch
) -> None:
    stack, device = stacked.stack, local_trainer.module.device
    before = _generator_states(device)
    with stack.computing():
        losses = stacked.loss(batch)
    if any(not torch.equal(one, other) for one, other in zip(before, _generator_states(device), strict=True)):
        raise Unstackable("the model draws random numbers, for each job its own")
    if stack.shortcut is not None and stack.shortcut.packed and not stack.tokens.left_packed:
        raise Unstackable("the blocks saw padding all the same")
    names = list(stack.trained)
    stacked_gradients = _gradients(losses.sum(), [stack.tensors[name] for name in names])
    for i, expected in enumerate(alone):
        gradients = [stack.part(i, name, value) for name, value in zip(names, stacked_gradients, strict=True)]
        _compare(names, gradients, expected, TOLERANCE[local_trainer.settings.precision])


def _alone(
    local_trainer: LocalTrainer, job: StackedJob, batch: Mapping[str, Tensor], names: Sequence[str]
) -> list[Tensor]:
    module = local_trainer.module
    assert isinstance(module, ClientModule)
    local_trainer.put(job.tensors)
    loss, _ = module._loss({name: value.to(module.device) for name, value in batch.items()})
    return _gradients(loss, [local_trainer.parameters[name] for name in names])


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def _compare(names: Sequence[str], gradients: Sequence[Tensor], alone: Sequence[Tensor], tolerance: float) -> None:
    whole = torch.stack([gradient.norm() for gradient in alone]).norm()
    for name, one, other in zip(names, gradients, alone, strict=True):
        if not (one - other).norm() <= tolerance * other.norm() + NEGLIGIBLE * whole:
            raise Unstackable(f"the gradient of {name} depends on which other jobs are computed beside")


def _generator_states(device: torch.device) -> list[Tensor]:
    """Returns the states of PyTorch's random generators on the CPU and on the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
