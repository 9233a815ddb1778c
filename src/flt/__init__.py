"""flt: federated fine-tuning for PyTorch Lightning. Read api/training.py first, then server/federator.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flt.core.imports import import_without_gc
from flt.core.launcher_watch import WATCH
from flt.core.openmp import limit_busy_waiting
from flt.core.torch_log import hide_cpp_warnings

__version__ = "0.1.0"
__all__ = [
    "ClientSpec",
    "InputError",
    "JobData",
    "Result",
    "compare",
    "config",
    "doctor",
    "evaluate",
    "fit",
    "generate",
    "list",
    "load",
    "merge",
    "partition",
    "plan",
    "predict",
    "report",
    "show",
]

if TYPE_CHECKING:
    from flt.api import Result, fit, partition, plan
    from flt.core.errors import InputError
    from flt.data.clients import ClientSpec, JobData
    from flt.export.load import load
    from flt.inference.evaluate import evaluate
    from flt.inference.generate import generate
    from flt.inference.predict import predict
    from flt.reports.compare import compare
    from flt.reports.page import report
    from flt.run.configuration import config
    from flt.run.doctor import doctor
    from flt.run.listing import listing as list
    from flt.run.merge import merge
    from flt.run.show import show

_HOMES = {
    "ClientSpec": "flt.data.clients",
    "InputError": "flt.core.errors",
    "JobData": "flt.data.clients",
    "compare": "flt.reports.compare",
    "config": "flt.run.configuration",
    "doctor": "flt.run.doctor",
    "evaluate": "flt.inference.evaluate",
    "generate": "flt.inference.generate",
    "list": "flt.run.listing",
    "load": "flt.export.load",
    "merge": "flt.run.merge",
    "predict": "flt.inference.predict",
    "report": "flt.reports.page",
    "show": "flt.run.show",
}
"""Public name -> module that defines it, for the names that aren't in :mod:`flt.api`."""

limit_busy_waiting()
hide_cpp_warnings()
WATCH.start()  # here, because the imports that follow take seconds


def __dir__() -> Iterable[str]:
    """Returns the public names, which tab completion then offers before they are imported."""
    return __all__


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use. ``import flt`` alone is fast, because it doesn't import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'flt' has no attribute {name!r}")
    own = {"list": "listing"}  # a module in which list is a function couldn't use Python's own
    return getattr(import_without_gc(_HOMES.get(name, "flt.api")), own.get(name, name))
