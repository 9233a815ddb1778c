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
"""The terms' largest magnitudes must add up to less than this: in units of 2^-24, that fits into an int64."""
COUNT = 1 << 20
"""Most terms: the second limb of each is at most 2^40."""


@dataclasses.dataclass
class ExactSum:
    """A running sum of tensors of one shape.

    Attributes:
        high: int64, in units of 2^-24.
        low: int64, in units of 2^-64.
        count: Terms added.
        reach: Sum of the terms' largest magnitudes, each rounded up.

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
    reach: float = 0.0

    @staticmethod
    def zeros(shape: tuple[int, ...]) -> ExactSum:
        """An empty sum of tensors of this shape."""
        return ExactSum(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64))

    @staticmethod
    def of(high: Tensor, low: Tensor, count: int, reach: float) -> ExactSum:
        """A sum from its parts, as processes have added them up.

        Raises:
            OverflowError: The terms are too large together, or there are too many of them.
        """
        whole = ExactSum(high, low)
        whole._grow(count, reach)
        return whole

    def add(self, term: Tensor) -> None:
        """Adds one float64 tensor.

        Raises:
            OverflowError: The terms are too large, or there are too many of them.
        """
        self._grow(1, float(term.abs().ceil().max()) if term.numel() else 0.0)
        high = torch.floor(term * HIGH)
        self.high += high.to(torch.int64)
        # exact: the remainder has the term's own low bits and nothing else
        self.low += torch.round((term - high / HIGH) * LOW).to(torch.int64)

    def plus(self, other: ExactSum) -> ExactSum:
        """The sum of both, which stay as they are: another process may have gathered the rest of the cohort.

        Raises:
            OverflowError: As :meth:`add` does.
        """
        return ExactSum.of(
            self.high + other.high, self.low + other.low, self.count + other.count, self.reach + other.reach
        )

    def value(self) -> Tensor:
        """The sum as float64."""
        return self.high.to(torch.float64) / HIGH + self.low.to(torch.float64) / LOW

    def _grow(self, count: int, reach: float) -> None:
        count, reach = self.count + count, self.reach + reach
        if count > COUNT or not reach < LARGEST:
            raise OverflowError(f"exact sum of {count} terms: needs at most {COUNT}, and magnitudes below 2^38 in all")
        self.count, self.reach = count, reach
