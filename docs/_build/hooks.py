"""Hooks of mkdocs: makes the pages that come from the code, and leads links out of docs/ to pages with the source.

Markdown in docs/ is read on GitHub as well. There, links such as ``../src/flt/api/training.py`` open the file. On the
site they open a generated page with the text of the file, so that no link needs a network or a checkout.
"""

from __future__ import annotations

import re
from pathlib import Path

import includes
import reference
import sources
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ROLE = re.compile(r":(?:class|func|meth|mod):(<code>)")
"""Mark of Sphinx before a name in a docstring, which Markdown would show."""


def on_config(config: MkDocsConfig) -> None:
    """Adds the generated pages to the navigation."""
    for section in config.nav:
        if "Reference" in section:
            section["Reference"][1:1] = reference.navigation()
        if "Results" in section:
            section["Results"].append({"Changelog": "changelog.md"})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the generated pages to the files of the site."""
    pages = reference.pages() | {"changelog.md": sources.changelog(ROOT)}
    pages |= sources.pages(ROOT, [file for file in files if file.src_uri.endswith(".md")])
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what a page includes, and leads its links out of docs/ to pages of the site."""
    return sources.with_pages(includes.filled(markdown, page.file.src_uri, ROOT), page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Removes what the docstrings hold for other programs than mkdocs."""
    return ROLE.sub(r"\1", html)
