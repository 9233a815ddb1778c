"""Imports: which libraries come with them, and which package a name leads to."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flt
from flt.core.imports import import_without_gc

LATER = ("datasets", "pandas", "sklearn", "pyarrow")
"""Libraries that ``flt.fit`` doesn't use."""


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


def test_what_was_imported_is_examined_no_more_only_if_asked() -> None:
    code = (
        "import gc; from flt.core.imports import import_without_gc as get; get('json'); print(gc.get_freeze_count());"
        "get('json', freeze=True); print(gc.get_freeze_count() > 1000)"
    )
    ran = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert ran.stdout.split() == ["0", "True"]


@pytest.mark.slow
def test_fit_comes_without_the_libraries_that_read_data_and_cluster() -> None:
    code = f"import sys, flt; flt.fit; print([name for name in {LATER} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_folder_called_flt_does_not_hide_the_package(tmp_path: Path) -> None:
    """An editable install by an import hook fails here, since Python finds the folder first."""
    (tmp_path / "flt").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", "import flt; print(flt.InputError.__name__, flt.__file__)"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert ran.stdout.split() == ["InputError", flt.__file__], ran.stderr
