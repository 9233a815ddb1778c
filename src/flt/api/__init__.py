"""Functions that start a run, and what they return. Read training.py first, then result.py."""

from flt.api.result import Result
from flt.api.training import fit, partition, train

__all__ = ["Result", "fit", "partition", "train"]
