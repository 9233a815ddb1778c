"""Sums whose bits depend neither on the order of the terms nor on how they are split over processes.

Floating-point addition isn't associative, integer addition is. A float64 term is cut into two int64 limbs, in units of
2^-24 and of 2^-64; the limbs are added as integers. The second limb is what makes the mean over one client return that
client's float32 bits.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

HIGH = 2.0**24
LOW = 2.0**64
LARGEST = 2.0**38
"""Terms must stay below this, so that 2^20 of them can be added in an int64."""
COUNT = 1 << 20


@dataclasses.dataclass
class ExactSum:
    """A running sum of tensors of one shape.

    Attributes:
        high: int64, in units of 2^-24.
        low: int64, in units of 2^-64.
        count: Terms added.

    Example:
        >>> total = ExactSum.zeros((1,))
        >>> for term in (0.1, 1e9, -1e9):
        ...     total.add(torch.tensor([term], dtype=torch.float64))
        >>> total.value().item()
        0.1
    """

    high: Tensor
    low: Tensor
    count: int = 0

    @staticmethod
    def zeros(shape: tuple[int, ...]) -> ExactSum:
        """An empty sum of tensors of this shape."""
        return ExactSum(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64))

    def add(self, term: Tensor) -> None:
        """Adds one float64 tensor.

        Raises:
            OverflowError: A term is too large, or there are too many of them.
        """
        if self.count >= COUNT or not bool((term.abs() < LARGEST).all()):
            raise OverflowError(f"exact sum of {self.count + 1} terms: needs at most {COUNT}, each below 2^38")
        high = torch.floor(term * HIGH)
        self.high += high.to(torch.int64)
        # exact: the remainder has the term's own low bits and nothing else
        self.low += torch.round((term - high / HIGH) * LOW).to(torch.int64)
        self.count += 1

    def merge(self, other: ExactSum) -> None:
        """Adds another sum: what a process that held the rest of the cohort has gathered."""
        self.high += other.high
        self.low += other.low
        self.count += other.count

    def value(self) -> Tensor:
        """The sum as float64."""
        return self.high.to(torch.float64) / HIGH + self.low.to(torch.float64) / LOW
