"""Faster import of large libraries."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_without_gc(name: str) -> ModuleType:
    """Imports a module that imports torch and other large libraries, with garbage collection switched off.

    Such an import creates some hundred thousand objects and no garbage. The collector would examine them again and
    again, which takes a tenth of the import's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if was_enabled:
            gc.enable()
