"""Registry of the parts of a recipe, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flt.algorithm.buffers import Average, Keep, Local
from flt.algorithm.compression.methods import Channel, NoCompression, Quantised
from flt.algorithm.grouping.agglomerative import AgglomerativeGrouping
from flt.algorithm.grouping.bandit import BanditGrouping
from flt.algorithm.grouping.base import Everyone
from flt.algorithm.grouping.density import DbscanGrouping, HdbscanGrouping
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.grouping.online import OnlineGrouping
from flt.algorithm.grouping.oracle import OracleGrouping
from flt.algorithm.importance import Ablation, DeltaSensitivity, GradientSensitivity, Magnitude, NoImportance
from flt.algorithm.plan import AdapterPlan, Alternating, FullPlan, Stages
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.residual import Residual
from flt.algorithm.rule.robust import Krum, Median, MultiKrum, NormBound, TrimmedMean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.rule.svd import Svd
from flt.algorithm.schedule import Annealed, Constant, Stalling
from flt.algorithm.selection.all import All
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.self_pruning import SelfPruning
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.server_optimizer import Adagrad, Adam, Momentum, NoServerOptimizer, Yogi
from flt.algorithm.transfer import CosineTransfer, LearnedTransfer, NoTransfer
from flt.core.errors import InputError
from flt.core.typed import typed

PARTS: dict[str, dict[str, type]] = {
    "plan": {"adapter": AdapterPlan, "alternating": Alternating, "full": FullPlan, "stages": Stages},
    "schedule": {"constant": Constant, "annealed": Annealed, "stalling": Stalling},
    "selection": {"all": All, "freeze": Freeze, "truncate": Truncate, "self_pruning": SelfPruning},
    "importance": {
        "none": NoImportance,
        "gradient": GradientSensitivity,
        "ablation": Ablation,
        "delta": DeltaSensitivity,
        "magnitude": Magnitude,
    },
    "grouping": {
        "everyone": Everyone,
        "kmeans": KMeansGrouping,
        "agglomerative": AgglomerativeGrouping,
        "dbscan": DbscanGrouping,
        "hdbscan": HdbscanGrouping,
        "bandit": BanditGrouping,
        "online": OnlineGrouping,
        "oracle": OracleGrouping,
    },
    "transfer": {"none": NoTransfer, "cosine": CosineTransfer, "learned": LearnedTransfer},
    "server_optimizer": {
        "none": NoServerOptimizer,
        "momentum": Momentum,
        "adagrad": Adagrad,
        "adam": Adam,
        "yogi": Yogi,
    },
    "rule": {
        "mean": Mean,
        "stacking": Stacking,
        "svd": Svd,
        "residual": Residual,
        "scaffold": Scaffold,
        "median": Median,
        "trimmed_mean": TrimmedMean,
        "krum": Krum,
        "multi_krum": MultiKrum,
        "norm_bound": NormBound,
    },
    "buffers": {"average": Average, "local": Local, "keep": Keep},
    "compression": {"none": NoCompression, "quantised": Quantised, "channel": Channel},
}
"""Class of each part, by the part's kind and its name. Each part also has a file conf/<kind>/<name>.yaml."""


def part(group: str, chosen: Mapping[str, Any]) -> Any:
    """Builds one part of a recipe from its configuration.

    Args:
        group: Kind of the part, such as ``rule``: a key of ``PARTS``.
        chosen: Settings of the part. The key ``name`` contains the part's name.

    Raises:
        InputError: No part of this kind has this name, or a setting is wrong.
    """
    name = chosen.get("name")
    if not isinstance(name, str) or name not in PARTS[group]:
        raise InputError.of(group, name, PARTS[group])
    return typed(PARTS[group][name], {key: value for key, value in chosen.items() if key != "name"}, group)
