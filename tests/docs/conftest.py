"""The docs site, which the tests of this folder share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from pages import ROOT, build_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it, without a network. mkdocs fails on a link or an anchor to nowhere."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "site"  # the workers share it
    with FileLock(f"{folder}.lock"):
        if not folder.with_suffix(".built").exists():
            code, printed = build_site(ROOT, folder)
            assert code == 0, printed
            assert printed == ""
            folder.with_suffix(".built").touch()
    return folder
