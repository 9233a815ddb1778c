"""Importing what takes seconds: what comes in, and what doesn't."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from flt.core.imports import import_without_gc

LATER = ("datasets", "pandas", "sklearn", "pyarrow")
"""What ``flt.fit`` has no use for."""


def test_garbage_is_collected_again_afterwards_also_where_the_import_fails() -> None:
    assert import_without_gc("json").__name__ == "json"
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError):
        import_without_gc("there.is.no.such.module")
    assert gc.isenabled()
    gc.disable()
    try:
        import_without_gc("json")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_fit_comes_without_the_libraries_that_read_data_and_cluster() -> None:
    code = f"import sys, flt; flt.fit; print([name for name in {LATER} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert ran.stdout.strip() == "[]"
