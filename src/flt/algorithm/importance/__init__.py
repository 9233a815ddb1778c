"""Importance: a score for each rank-1 component. Selection and pruning prefer components with high scores.

Read measured.py first: it has the base of the scores that clients measure.
"""

from flt.algorithm.importance.ablation import Ablation
from flt.algorithm.importance.delta import DEVIATION, MEAN, DeltaSensitivity
from flt.algorithm.importance.gradient import GradientSensitivity, SensitivityMeter
from flt.algorithm.importance.magnitude import Magnitude
from flt.algorithm.importance.none import NoImportance

__all__ = [
    "DEVIATION",
    "MEAN",
    "Ablation",
    "DeltaSensitivity",
    "GradientSensitivity",
    "Magnitude",
    "NoImportance",
    "SensitivityMeter",
]
