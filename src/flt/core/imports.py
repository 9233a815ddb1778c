"""Faster import of large libraries."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_without_gc(name: str, *, freeze: bool = False) -> ModuleType:
    """Imports a module with garbage collection switched off.

    The import of torch and other large libraries creates some hundred thousand objects and no garbage. The collector
    would examine these objects repeatedly, which takes a fifth of the import's time.

    Args:
        name: Full name of the module.
        freeze: If True, later garbage collections skip all objects that exist after the import, which makes a short
            run about a fifth faster. Only programs of flt itself set ``freeze``. In a user's own program, garbage of
            the program would be skipped too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        module = importlib.import_module(name)
        if freeze:
            gc.freeze()
        return module
    finally:
        if was_enabled:
            gc.enable()
