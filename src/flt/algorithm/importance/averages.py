"""Settings of AdaLoRA's two moving averages."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flt.algorithm.base import ImportancePart
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS


@dataclasses.dataclass(frozen=True)
class AdaLoraAverages(ImportancePart):
    """Base of the scores that use AdaLoRA's two moving averages (arXiv 2303.10512, equations 5 and 6).

    Ibar averages the sensitivity I. Ubar, the uncertainty, averages |I - Ibar|.
    """

    beta1: float = 0.85
    beta2: float = 0.85
    uncertainty: bool = False

    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError.of(f"importance.{name}", getattr(self, name), "a number in [0, 1)")
