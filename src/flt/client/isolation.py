"""Isolation of fits from each other: seeds all random generators, and restores the module after a fit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn


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

    At the end of the fit, restores buffers, training modes and random generators, and removes gradients.

    Args:
        module: The resident module, on which one fit runs after another.
        parameters: The module's parameters.
    """
    before = [(sub, _copied(sub._buffers), sub.training) for sub in module.modules()]
    with isolate_rng():
        try:
            yield
        finally:
            for sub, buffers, training in before:
                sub._buffers.update(buffers)
                sub.training = training
            for parameter in parameters:
                parameter.grad = None


def _copied(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}
