"""Faster import of large libraries."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_without_gc(name: str) -> ModuleType:
    """Imports a module with garbage collection switched off.

    The import of torch and other large libraries creates some hundred thousand objects and no garbage. The collector
    would examine these objects repeatedly, which takes a tenth of the import's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if was_enabled:
            gc.enable()
