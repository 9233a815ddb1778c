"""Isolation of fits from each other: seeds all random generators, and restores the module after a fit."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

TABLES = ("_modules", "_buffers", "_non_persistent_buffers_set")
"""Attributes in which torch keeps the submodules and buffers of a module."""


def seed_everything(seed: int, device: torch.device) -> None:
    """Seeds every global random generator that a fit may draw from.

    Args:
        seed: The seed.
        device: The device on which the fit runs.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.manual_seed(seed)  # seeds every device; left out on the CPU, because it takes a millisecond
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def isolated(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context manager that keeps a fit from affecting later fits.

    At the end of the fit, restores buffers, submodules, training modes and random generators, and removes gradients.

    Args:
        module: The resident module, on which one fit runs after another.
        parameters: The module's parameters.
    """
    modes = [(sub, sub.training) for sub in module.modules()]
    with isolate_rng(), buffers_kept(module):
        try:
            yield
        finally:
            for sub, training in modes:
                sub.training = training
            for parameter in parameters:
                parameter.grad = None


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Context manager of a fit or an evaluation, after which a module has the buffers and submodules from before.

    Without it, a buffer or a metric that a user's hook makes would pass from one client to the next. Buffers stay the
    same objects, because several layers may share one.
    """
    before = [(sub, {key: copy.copy(vars(sub)[key]) for key in TABLES}, dict(vars(sub))) for sub in module.modules()]
    held = {
        id(buffer): buffer for _, tables, _ in before for buffer in tables["_buffers"].values() if buffer is not None
    }
    values = [(buffer, buffer.detach().clone()) for buffer in held.values()]
    try:
        yield
    finally:
        for sub, tables, attributes in before:
            for name, value in attributes.items():  # such as None, which a submodule of the same name has replaced
                vars(sub).setdefault(name, value)
            for key, table in tables.items():
                vars(sub)[key].clear()
                vars(sub)[key].update(table)
        for buffer, value in values:
            write(buffer, value)


def write(buffer: Tensor, value: Tensor) -> None:
    """Gives a buffer a value, in place."""
    if buffer.shape == value.shape and not any(step == 0 for step in buffer.stride()):
        buffer.detach().copy_(value)
    else:  # the buffer has been resized, or its entries share memory
        buffer.data = value.to(buffer.device, copy=True)
