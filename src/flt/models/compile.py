"""torch.compile for a model whose adapters have different ranks on different clients."""

from __future__ import annotations

import torch
from torch import nn

from flt.core.errors import InputError

VARIANTS = 64
"""Largest number of compiled graphs of one function. Each rank needs one graph in training and one in evaluation.

Once a function has this many graphs, torch runs the function uncompiled.
"""


def compile_model(model: nn.Module) -> None:
    """Compiles a model's ``forward`` in place. The names of its parameters stay the same.

    Args:
        model: The model. It must already be on its device.

    Raises:
        InputError: The model is on a CPU, and there is no C++ compiler.
    """
    from torch._inductor import cpp_builder  # imported here: the import takes seconds
    from torch._inductor.exc import InvalidCxxCompiler

    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        try:
            cpp_builder.get_cpp_compiler()
        except InvalidCxxCompiler:
            raise InputError.of("compile", True, "false", "torch.compile wants a C++ compiler such as g++") from None
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    model.compile()
