"""torch.compile, for a model whose adapters change their ranks from client to client."""

from __future__ import annotations

import torch
from torch import nn

from flt.core.errors import InputError

VARIANTS = 64
"""Graphs of one function: for training and evaluation, and for each rank; with fewer torch goes on uncompiled."""


def compile_model(model: nn.Module) -> None:
    """Compiles a model's ``forward``, in place: its names stay.

    Args:
        model: On its device.

    Raises:
        InputError: It is on a CPU, and there is no C++ compiler.
    """
    from torch._inductor import cpp_builder  # seconds of imports that only a compiled run needs
    from torch._inductor.exc import InvalidCxxCompiler

    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        try:
            cpp_builder.get_cpp_compiler()
        except InvalidCxxCompiler:
            raise InputError.of("compile", True, "false", "torch.compile wants a C++ compiler such as g++") from None
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    model.compile()
