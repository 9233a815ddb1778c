"""What a page of docs/ includes when the site is built, by comments that GitHub doesn't show.

``<!-- recipe: hafl -->`` is the file conf/algo/hafl.yaml, line by line. ``<!-- section: results/hafl.md: What came out -->``
is a section of another page of docs/, with its links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import conf_pages

MARK = re.compile(r"^<!-- (recipe|section): (.+?) -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^()\s:#][^()\s:]*)(?=\))")


def filled(markdown: str, page: str, root: Path) -> str:
    """Returns a page's Markdown with all that it includes."""

    def text(found: re.Match[str]) -> str:
        if found[1] == "recipe":
            return conf_pages.recipe(found[2], page)
        place, title = found[2].split(": ")
        return section(root / "docs" / place, title, posixpath.relpath(posixpath.dirname(place), posixpath.dirname(page)))

    return MARK.sub(text, markdown)


def section(file: Path, title: str, folder: str) -> str:
    """Returns the text of a section, without its title, with headings one level lower.

    Args:
        file: Page that holds the section.
        title: Title of the section, which is of level two.
        folder: The page's folder, as a path from the folder of the page that includes the section.

    Raises:
        ValueError: There is no such section.
    """
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"{file} has no section {title!r}")
    text = re.sub(r"^###", "####", found[1].strip(), flags=re.MULTILINE)
    return LINK.sub(lambda link: posixpath.join(folder, link[1]), text)
