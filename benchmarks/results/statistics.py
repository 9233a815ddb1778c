"""Student's t intervals of paired differences, and the equivalence of two rows by two one-sided tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05
"""Error of a test, and one minus the level of an interval."""


def interval(differences: Sequence[float], level: float = 1 - LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean, not corrected for several comparisons; None for fewer than two differences.

    Args:
        differences: One per seed; finite.
        level: Probability that the interval contains the true mean.

    Example:
        >>> low, high = interval([0.01, 0.02, 0.03])
        >>> round(low, 4), round(high, 4)
        (-0.0048, 0.0448)
    """
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    half = float(t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def equivalence(differences: Sequence[float], margin: float) -> float | None:
    """The p-value of equivalence within a margin, by two one-sided t tests (TOST, Schuirmann 1987).

    A value below .05 says that the true mean lies between -margin and +margin, as does a 90 % interval inside them.

    Args:
        differences: One per seed; finite.
        margin: Largest difference that counts as none; above zero, in the unit of the differences.

    Returns:
        The larger p-value of the two tests; None for fewer than two differences.

    Raises:
        ValueError: The margin isn't above zero.

    Example:
        >>> round(equivalence([0.001, -0.002, 0.0], margin=0.01), 4)
        0.0041
    """
    if not margin > 0:
        raise ValueError(f"margin={margin}, allowed: a number above zero")
    sides = [not_worse(differences, margin), not_worse([-difference for difference in differences], margin)]
    return None if sides[0] is None or sides[1] is None else max(sides[0], sides[1])


def not_worse(advantages: Sequence[float], margin: float) -> float | None:
    """The p-value of non-inferiority: a one-sided t test that the mean advantage is above -margin.

    Args:
        advantages: One per seed, positive where the first of the pair is better; finite.
        margin: Largest disadvantage that counts as none.

    Returns:
        The p-value; None for fewer than two advantages. Without any deviation it is 0 or 1.
    """
    from scipy.stats import t

    n = len(advantages)
    if n < 2:
        return None
    above, error = statistics.fmean(advantages) + margin, statistics.stdev(advantages) / math.sqrt(n)
    if error == 0:
        return 0.0 if above > 0 else 1.0
    return float(t.sf(above / error, n - 1))
