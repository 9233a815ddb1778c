"""Descriptions of tensors and of layers with LoRA, of which the layout of a module consists, and how they are found."""

from __future__ import annotations

import dataclasses

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flt.protocol.codec import DTYPES

FIXED = "fixed"
"""Role of parameters that no plan can train, because they are integers or flags."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Description of one tensor."""

    role: str
    """Kind of the tensor: ``A``, ``B``, ``adapter`` (part of an adapter other than LoRA), ``head``, ``base``,
    ``buffer`` or ``fixed``."""
    shape: tuple[int, ...]
    """Shape of the tensor at the initial rank."""
    layer: str = ""
    """Name of the adapted layer that A or B belongs to; empty for other tensors."""
    axis: int | None = None
    """Index of the rank axis: 0 for A of shape (r, in), 1 for B of shape (out, r), None for other tensors."""
    variant: str = ""
    """Name of the head that the tensor belongs to, if jobs have different heads; else empty."""
    dtype: torch.dtype | None = None
    """Type of the numbers of a buffer; None for other tensors, which are numbers in floating point."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """Description of one layer with LoRA: W = W0 + scale B A, or such a sum of convolutions."""

    rank: int
    """Initial rank r. The ids of the layer's rank-1 components are 0 .. r - 1."""
    scale: float
    """Factor alpha / r for the initial rank r. It is the same on every client and in every round."""
    base: str
    """Name of W0."""
    a: str
    """Name of A, which has the shape (r, in), or (r, in, ...) if the layer is a convolution."""
    b: str
    """Name of B, which has the shape (out, r), or (out, r, ...) if the layer is a convolution."""
    transposed: bool = False
    """True if W0 is stored as (in, out), as in GPT-2's Conv1D."""
    matrices: bool = True
    """True if W0, A and B are matrices, so that B A can be formed and added to W0. Parts that do this need it."""

    def stored(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two factors whose product has the shape of the stored W0.

        If W0 is stored as (in, out), the factors are swapped and transposed. Otherwise, they are returned unchanged.

        Args:
            left: First factor of a change of W0, shape (out, n).
            right: Second factor of the change, shape (n, in).
        """
        return (right.T.contiguous(), left.T.contiguous()) if self.transposed else (left, right)


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers of a module's state dict by name, without those of types that a message can't contain."""
    found = {}
    for prefix, sub in module.named_modules():
        for name, buffer in sub._buffers.items():
            if buffer is not None and name not in sub._non_persistent_buffers_set and buffer.dtype in DTYPES:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def is_lora(module: nn.Module) -> bool:
    """Returns whether a module is a LoRA layer of peft with an active adapter."""
    return isinstance(module, LoraLayer) and any(name in module.lora_A for name in module.active_adapters)


def lora_layer(name: str, module: nn.Module) -> Layer:
    """Returns the description of a LoRA layer.

    Args:
        name: Name of the layer in its module.
        module: The layer.
    """
    assert isinstance(module, LoraLayer)
    adapter = next(adapter for adapter in module.active_adapters if adapter in module.lora_A)
    return Layer(
        rank=module.r[adapter],
        scale=float(module.scaling[adapter]),
        base=f"{name}.base_layer.weight",
        a=f"{name}.lora_A.{adapter}.weight",
        b=f"{name}.lora_B.{adapter}.weight",
        transposed=bool(getattr(module, "fan_in_fan_out", False)),
        matrices=module.lora_A[adapter].get_parameter("weight").dim() == 2,
    )


def role_of(name: str, parameter: nn.Parameter, head: tuple[str, ...]) -> str:
    """Returns the role of a parameter that isn't a factor of LoRA.

    Args:
        name: Name of the parameter.
        parameter: The parameter.
        head: Names of the submodules that form the head.
    """
    # Quantised weights are of subclasses.
    if type(parameter) is nn.Parameter and not (parameter.is_floating_point() or parameter.is_complex()):
        return FIXED
    if lies_in(name, head):
        return "head"
    return "adapter" if parameter.requires_grad else "base"


def lies_in(name: str, modules: tuple[str, ...]) -> bool:
    """Returns whether a tensor or module lies in one of these submodules, or is one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
