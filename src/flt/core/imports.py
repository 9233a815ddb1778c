"""Importing what takes seconds."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_without_gc(name: str) -> ModuleType:
    """Imports a module that brings torch and its company along.

    Meanwhile nobody looks for garbage: some hundred thousand new objects, none of which is any, are gone through again
    and again otherwise, for a tenth of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collects:
            gc.enable()
