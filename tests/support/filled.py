"""States whose factors B are not zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def fill_b(tensors: Mapping[str, Tensor]) -> None:
    """Puts numbers in the place of the zeros that B begins with."""
    for name in (name for name in tensors if "lora_B" in name):
        tensors[name].data.copy_(torch.linspace(-1, 1, tensors[name].numel()).view_as(tensors[name]))
