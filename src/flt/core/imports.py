"""Imports of modules that take seconds to load."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_without_gc(name: str) -> ModuleType:
    """Imports a module that loads torch, while the garbage collector is off.

    Such an import creates some hundred thousand objects, all of which stay in use. Collections that search them again
    and again would take a tenth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if was_enabled:
            gc.enable()
