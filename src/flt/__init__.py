"""flt: federated fine-tuning for PyTorch Lightning. Read api.py first, then server/federator.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flt.core.imports import import_without_gc
from flt.core.launcher_watch import WATCH
from flt.core.openmp import limit_busy_waiting
from flt.core.torch_log import hide_cpp_warnings

__version__ = "0.1.0"
__all__ = ["ClientSpec", "InputError", "JobData", "Result", "fit", "load", "partition", "report"]

if TYPE_CHECKING:
    from flt.api import Result, fit, partition
    from flt.core.errors import InputError
    from flt.data.clients import ClientSpec, JobData
    from flt.export.load import load
    from flt.reports.page import report

limit_busy_waiting()
hide_cpp_warnings()
WATCH.start()  # here, because the imports that follow take seconds


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use. ``import flt`` alone is fast, because it doesn't import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'flt' has no attribute {name!r}")
    clients = dict.fromkeys(("ClientSpec", "JobData"), "flt.data.clients")
    homes = {"InputError": "flt.core.errors", "load": "flt.export.load", "report": "flt.reports.page", **clients}
    return getattr(import_without_gc(homes.get(name, "flt.api")), name)
