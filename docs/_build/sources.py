"""Pages with the text of files outside of docs/, for the links that lead to these files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r"(?<=\]\()([^()\s#]+)(#[^()\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown"}


def pages(root: Path, files: Iterable[File]) -> dict[str, str]:
    """Returns the page of each file to which a page of docs/ links, by the page's place in docs/."""
    links = {link for file in files for link in _outside(file.content_string, file.src_uri)}
    return {_place(path): _page(root / path, path) for path in sorted(links)}


def with_pages(markdown: str, page: str) -> str:
    """Returns a page's Markdown in which links out of docs/ lead to the pages with the source."""

    def replaced(found: re.Match[str]) -> str:
        path = _path(found[1], page)
        return posixpath.relpath(_place(path), posixpath.dirname(page)) if path else found[0]

    return LINK.sub(replaced, markdown)


def changelog(root: Path) -> str:
    """Returns CHANGELOG.md, whose links start at the repository's root, as a page of docs/."""
    return re.sub(r"\]\(docs/", "](", (root / "CHANGELOG.md").read_text())


def _outside(markdown: str, page: str) -> Iterable[str]:
    return filter(None, (_path(found[1], page) for found in LINK.finditer(markdown)))


def _path(link: str, page: str) -> str:
    """Returns the path in the repository of a link that leads out of docs/, or an empty text for another link."""
    if ":" in link:
        return ""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return "" if path.startswith(("docs/", "../")) else path


def _place(path: str) -> str:
    return f"source/{path}.md"


def _page(file: Path, path: str) -> str:
    language = LANGUAGES.get(file.suffix, "text")
    head = f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n\n# {path}\n\n"
    return f"{head}````{language}\n{file.read_text()}````\n"
