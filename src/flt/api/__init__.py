"""Functions that start a run, and what they return. Read training.py first, then result.py."""

from flt.api.result import Result
from flt.api.training import RunPlan, fit, partition, plan, train

__all__ = ["Result", "RunPlan", "fit", "partition", "plan", "train"]
