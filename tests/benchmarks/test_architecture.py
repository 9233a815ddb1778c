"""The picture of the packages, and the paths that the pages name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.pages import architecture

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")
PATH = re.compile(
    r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|yaml|md|svg|png|txt|cfg)|(?:src|conf|docs|tests|benchmarks)/[\w./-]*/)`"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with three layers: run imports server and core, server imports core."""
    files = {
        "__init__.py": "from toy.run import loop",
        "core/__init__.py": '"""Tools. Read errors first."""',
        "core/errors.py": "import os",
        "server/__init__.py": '"""The loop."""',
        "server/loop.py": "from toy.core.errors import Wrong\nimport toy.core.files\nfrom toy.server import other",
        "server/types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.run.run import Run",
        "run/__init__.py": '"""A run."""',
        "run/run.py": "def go():\n    from toy import server\n    from toy.core import errors",
        "api.py": '"""The way in."""\nfrom toy.run.run import go',
    }
    for name, text in files.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "toy"


def test_imports_are_found_wherever_they_stand_but_not_those_for_types(tree: Path) -> None:
    assert architecture.imports(tree) == {
        ("server", "core"): 2,
        ("run", "server"): 1,
        ("run", "core"): 1,
        ("api", "run"): 1,
    }


def test_packages_have_the_first_sentence_of_their_docstring(tree: Path) -> None:
    found = architecture.packages(tree)
    assert list(found) == ["api", "core", "run", "server"]
    assert found["core"] == architecture.Package("core", "Tools", 1)
    assert found["api"] == architecture.Package("api", "The way in", 1)
    assert found["server"].modules == 2


def test_an_edge_that_a_longer_way_replaces_is_left_out(tree: Path) -> None:
    assert architecture.direct(architecture.imports(tree)) == {("server", "core"), ("run", "server"), ("api", "run")}


def test_an_import_from_a_later_package_is_found(tree: Path) -> None:
    assert architecture.upwards(architecture.imports(tree)) == set()
    (tree / "core" / "files.py").write_text("from toy.server.loop import run")
    assert architecture.upwards(architecture.imports(tree)) == {("core", "server")}


def test_a_picture_has_the_same_bytes_each_time(tree: Path, tmp_path: Path) -> None:
    (tree / "stray").mkdir()
    (tree / "stray" / "__init__.py").write_text('"""A package that no band names."""')
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in (first, second):
        architecture.draw(tree, path)
    assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in first.read_bytes()


def test_the_page_lists_every_package_in_the_order_of_the_picture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## The path of an update")[0]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == architecture.ordered()
    assert set(architecture.packages(ROOT / "src" / "flt")) == set(architecture.ordered())


def exists(page: Path, named: str) -> bool:
    """True if a path exists beside the page, in the repository or in the package."""
    return any((folder / named).exists() for folder in (page.parent, ROOT, ROOT / "src" / "flt"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    prose = FENCED.sub("", page.read_text())
    links = [link for link in LINK.findall(prose) if not (page.parent / link).exists()]
    paths = [path for path in PATH.findall(prose) if not exists(page, path)]
    assert links + paths == []
