"""Completion of a module whose layers aren't made, or whose sizes aren't known, when ``__init__`` has ended."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flt.core.errors import InputError


def complete(module: nn.Module) -> None:
    """Calls a LightningModule's ``configure_model``, as a Trainer does before a fit.

    Raises:
        InputError: ``configure_model`` needs a Trainer, a lazy layer doesn't know its size, or torch.jit has compiled a
            submodule.
    """
    if isinstance(module, pl.LightningModule):
        try:
            module.configure_model()
        except RuntimeError as error:
            if "attached to a `Trainer`" not in str(error):
                raise
            allowed = "a configure_model that needs no Trainer, because the adapter is attached before the first fit"
            raise InputError.of("module", type(module).__name__, allowed, str(error)) from error
    for name, sub in module.named_modules():
        if isinstance(sub, torch.jit.ScriptModule):
            why = "nothing can be attached to compiled code, and its buffers can't be put back"
            raise InputError.of(f"module.{name}", type(sub).__name__, "the module before torch.jit", why)
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            allowed = "a module that has computed one batch, with which lazy layers get their sizes"
            raise InputError.of(f"module.{name}", type(parameter).__name__, allowed, "its size isn't known yet")
