"""Whether a stack of jobs computes what each job would compute alone: asked of the model, once, with real batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flt.client import ClientModule
from flt.data.stores import IGNORED
from flt.engines import first_token
from flt.engines.first_token import Shortcut
from flt.engines.frames import Unstackable, joined
from flt.engines.stacked import StackedJob, StackedModule
from flt.site import Site
from flt.tolerance import ClientTimeoutError

_log = logging.getLogger(__name__)
JOBS = 3
"""On as many jobs it is tried."""
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 0.1}
"""Of a tensor's gradient, relative to its norm; far above rounding, far below another job's or example's gradient."""
NEGLIGIBLE = 1e-4
"""Gradients smaller than that part of the job's whole gradient are rounding."""


def proven(site: Site, jobs: Sequence[StackedJob], stacked: StackedModule) -> Shortcut | None:
    """What may be left out, without which the stack then computes; None: nothing.

    Args:
        site: Whose module trains them alone; afterwards another job's tensors are in it.
        jobs: The first of the stack's.
        stacked: What trains them together.

    Raises:
        Unstackable: The gradients of the jobs' first batches differ, or the model draws random numbers.
    """
    module, stack = site.module, stacked.stack
    batches = {i: next(iter(site.loader(job.data.training_set, job.seed))) for i, job in enumerate(jobs)}
    one = any(_is_single(batch) for batch in batches.values())
    # elsewhere a call costs more than the padding of a small batch, and nobody has measured it
    padded = site.module.device.type == "cpu" and not one and all("attention_mask" in its for its in batches.values())
    if padded:
        batches = {i: _shortened(batch, stacked.steps.padding) for i, batch in batches.items()}
        padded = any(not batch["attention_mask"].all() for batch in batches.values())
    with _autocast(site):
        alone = [_alone(site, job, batches[i], list(stack.trained)) for i, job in enumerate(jobs)]
        first = type(module) is ClientModule and not one
        for shortcut in first_token.shortcuts(cast(nn.Module, module.model), first, padded):
            stack.shortcut = shortcut
            try:
                _check(site, alone, stacked, batches)
                return shortcut
            except ClientTimeoutError:
                raise
            except Exception as error:  # whatever a model raises that wants all tokens
                _log.debug("not with the first token alone: %s", error)
        stack.shortcut = None
        _check(site, alone, stacked, batches)
    return None


def _is_single(batch: Mapping[str, Tensor]) -> bool:
    """Texts of one token, which tell nothing of what a head would read of longer ones."""
    return "input_ids" in batch and batch["input_ids"].shape[1] < 2


def _shortened(batch: Mapping[str, Tensor], padding: int) -> Mapping[str, Tensor]:
    """The batch with every other text cut to half of its tokens, so that there is padding; something stays to learn."""
    mask, labels = batch["attention_mask"], batch["labels"]
    cut = torch.zeros_like(mask, dtype=torch.bool)
    cut[::2, (mask.shape[1] + 1) // 2 :] = True
    if labels.dim() == 2:  # of tokens
        cut &= (labels.masked_fill(cut, IGNORED)[:, 1:] != IGNORED).any(1, keepdim=True)
        labels = labels.masked_fill(cut, IGNORED)
    filled = {name: batch[name].masked_fill(cut, padding) for name in ("input_ids",) if name in batch}
    return {**batch, **filled, "attention_mask": mask.masked_fill(cut, 0), "labels": labels}


def _autocast(site: Site) -> torch.autocast:
    return torch.autocast(site.module.device.type, torch.bfloat16, enabled=site.settings.precision != "32-true")


def _check(
    site: Site, alone: Sequence[Sequence[Tensor]], stacked: StackedModule, batches: Mapping[int, Mapping[str, Tensor]]
) -> None:
    stack, device = stacked.stack, site.module.device
    before = _drawn(device)
    with stack.computing():
        losses = stacked.loss(joined(batches, stacked.steps.padding))
    if any(not torch.equal(one, other) for one, other in zip(before, _drawn(device), strict=True)):
        raise Unstackable("the model draws random numbers, for each job its own")
    names = list(stack.trained)
    together = _gradients(losses.sum(), [stack.tensors[name] for name in names])
    for i, expected in enumerate(alone):
        found = [stack.part(i, name, value) for name, value in zip(names, together, strict=True)]
        _compare(names, found, expected, TOLERANCE[site.settings.precision])


def _alone(site: Site, job: StackedJob, batch: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    module = site.module
    assert isinstance(module, ClientModule)
    site.put(job.tensors)
    loss, _ = module._loss({name: value.to(module.device) for name, value in batch.items()})
    return _gradients(loss, [site.parameters[name] for name in names])


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
