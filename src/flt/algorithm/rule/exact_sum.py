"""Exact sums, which are bit-identical for any order of the terms and any number of processes.

Floating-point addition isn't associative, but integer addition is. Each float64 term is split into two int64 numbers,
called limbs, in units of 2^-24 and 2^-64. The limbs are added as integers. Thanks to the second limb, the mean over a
single client is bit-identical to that client's float32 values.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

HIGH = 2.0**24
LOW = 2.0**64
LARGEST = 2.0**38
"""Upper limit for ``ExactSum.reach``. In units of 2^-24, a sum below this limit fits into an int64."""
COUNT = 1 << 20
"""Largest number of terms. A second limb is at most 2^40, so the sum of 2^20 second limbs fits into an int64."""


@dataclasses.dataclass
class ExactSum:
    """Running sum of tensors of one shape.

    Attributes:
        high: Sum of the first limbs, int64, in units of 2^-24.
        low: Sum of the second limbs, int64, in units of 2^-64.
        count: Number of terms.
        reach: Upper bound for the magnitudes of the sum's entries. Each term adds the largest magnitude of its
            entries, rounded up.

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
        """Returns an empty sum for tensors of this shape."""
        return ExactSum(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64))

    @staticmethod
    def of(high: Tensor, low: Tensor, count: int, reach: float) -> ExactSum:
        """Builds a sum from fields that have been added up over several processes.

        Raises:
            OverflowError: ``reach`` isn't below ``LARGEST``, or there are more than ``COUNT`` terms.
        """
        total = ExactSum(high, low)
        total._grow(count, reach)
        return total

    def add(self, term: Tensor) -> None:
        """Adds one float64 tensor.

        Raises:
            OverflowError: ``reach`` isn't below ``LARGEST``, or there are more than ``COUNT`` terms.
        """
        self._grow(1, float(term.abs().ceil().max()) if term.numel() else 0.0)
        high = torch.floor(term * HIGH)
        self.high += high.to(torch.int64)
        # The subtraction is exact, because the remainder consists of the low bits of the term.
        self.low += torch.round((term - high / HIGH) * LOW).to(torch.int64)

    def plus(self, other: ExactSum) -> ExactSum:
        """Returns the sum of two sums, for example of two processes. The two sums stay unchanged.

        Raises:
            OverflowError: ``reach`` isn't below ``LARGEST``, or there are more than ``COUNT`` terms.
        """
        return ExactSum.of(
            self.high + other.high, self.low + other.low, self.count + other.count, self.reach + other.reach
        )

    def value(self) -> Tensor:
        """Returns the sum as float64."""
        return self.high.to(torch.float64) / HIGH + self.low.to(torch.float64) / LOW

    def _grow(self, count: int, reach: float) -> None:
        count, reach = self.count + count, self.reach + reach
        if count > COUNT or not reach < LARGEST:
            raise OverflowError(f"exact sum of {count} terms: needs at most {COUNT}, and magnitudes below 2^38 in all")
        self.count, self.reach = count, reach
