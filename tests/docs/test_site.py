"""The docs site, built as ``make docs`` builds it: strictly, without a network, and with all that the code has."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from pages import DOCS, ROOT, build_site

import flt
from flt.cli import conf_comments
from flt.cli.commands import COMMANDS
from flt.core import errors
from flt.run.conf_groups import choices, groups
from flt.server.callback import FedCallback

LOADED = re.compile(
    r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*?\b(?:src|href|data)=\"?(https?:)?//[^\s>]+"
)
OF_STYLE = re.compile(r"url\(['\"]?(?:https?:)?//[^)]*|@import[^;]*//")
TARGET = re.compile(r"\b(?:href|src)=\"([^\"]+)\"")
NAME = re.compile(r"\bid=\"?([^\"\s>]+)")
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    """The text of a page, without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_a_link_to_nowhere_ends_the_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[a page](nowhere.md) and [a place](#nowhere)")
    names = {"site_name": "flt", "plugins": [], "hooks": [str(ROOT / "docs" / "_build" / "strict.py")]}
    checked = {"validation": {"not_found": "warn", "anchors": "warn"}}
    (tmp_path / "mkdocs.yml").write_text(json.dumps(names | checked))
    code, printed = build_site(tmp_path, tmp_path / "site")
    assert code != 0
    assert "'nowhere.md'" in printed
    assert "'#nowhere'" in printed


@pytest.mark.slow
def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    loaded = {page.name: found.group() for page in site.rglob("*.html") if (found := LOADED.search(page.read_text()))}
    assert not loaded
    styles = {file.name: OF_STYLE.findall(file.read_text()) for file in site.rglob("*.css")}
    assert styles
    assert not any(styles.values()), styles


@pytest.mark.slow
def test_every_link_inside_of_the_site_leads_to_a_file_and_an_anchor(site: Path) -> None:
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    names = {page: {html.unescape(name) for name in NAME.findall(text)} for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        if page.name == "404.html":  # it is shown in any folder, so its links start at the site's root
            continue
        for link in set(TARGET.findall(text)):
            path, anchor = urldefrag(html.unescape(link))
            if re.match(r"[a-z]+:", path):
                continue
            target = (page.parent / unquote(path)).resolve() if path else page
            if not target.is_file() or (anchor and target in names and unquote(anchor) not in names[target]):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


@pytest.mark.slow
def test_the_reference_has_every_key_with_its_default_and_meaning(site: Path) -> None:
    keys = text_of(site / "reference" / "keys.html")
    for section in conf_comments.sections().values():
        for key in section:
            assert key.name in keys
            assert key.meaning.replace("`", "") in keys
    for group in groups():
        page = text_of(site / "reference" / "parts" / f"{group}.html")
        for key in conf_comments.group_keys(group):
            assert key.name in page
            assert key.meaning.replace("`", "") in page


@pytest.mark.slow
def test_the_reference_has_every_choice_with_its_summary(site: Path) -> None:
    for group in groups():
        page = text_of(site / "reference" / "parts" / f"{group}.html")
        for choice in choices(group):
            assert f"{group}={choice}" in page
            assert conf_comments.summary(group, choice).replace("`", "") in page


@pytest.mark.slow
def test_the_reference_has_the_help_of_every_command(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text()
    for name, about in COMMANDS.items():
        if about.summary:
            assert f'id="flt-{name}"' in page
            assert html.escape(f"flt {name}", quote=False) in page


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_hides_the_source(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text()
    for name in flt.__all__:
        assert f'id="flt.{name}"' in page
    assert errors.InputError.__doc__.splitlines()[0] in text_of(site / "reference" / "api.html")
    extended = (site / "reference" / "extend.html").read_text()
    assert f'id="{FedCallback.__module__}.FedCallback.on_round_end"' in extended
    assert "Source code in" not in page + extended
    assert html.escape(">>> ") in page
    assert "<blockquote" not in page + extended  # as which Markdown reads the >>> of an example


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["hafl", "sa_fedlora", "fl_tac", "c2a"])
def test_a_paper_has_formulas_each_line_of_its_yaml_and_its_results(site: Path, paper: str) -> None:
    page = (site / "papers" / f"{paper}.html").read_text()
    assert page.count("<math") >= 5
    article = page[page.index("<article") : page.index("</article")]
    assert "$" not in re.sub(r"<pre.*?</pre>", "", article, flags=re.DOTALL)
    file = ROOT / "conf" / "algo" / f"{paper}.yaml"
    for key, value in conf_comments.settings(file):
        assert f"{key}: {value}" in text_of(site / "papers" / f"{paper}.html")
    assert "What came out" not in page
    assert "<!-- recipe" not in page
    assert "<!-- section" not in page


@pytest.mark.slow
def test_a_page_of_source_is_the_file(site: Path) -> None:
    page = text_of(site / "source" / "src" / "flt" / "server" / "federator.py.html")
    for line in (ROOT / "src" / "flt" / "server" / "federator.py").read_text().splitlines():
        assert line in page


def test_a_relative_link_in_docs_leads_to_a_file_on_github_as_well() -> None:
    broken = []
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        for link in LINK.findall(FENCE.sub("", page.read_text())):
            path = urldefrag(link)[0]
            if path and ":" not in path and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_every_picture_has_a_text_instead() -> None:
    for page in DOCS.rglob("*.md"):
        assert "![](" not in page.read_text(), page


WORDS = {
    "client", "job", "task", "round", "cohort", "component", "head", "backbone", "base", "adapter", "payload", "update",
    "slot", "budget", "group", "home group", "received", "held", "kept", "active", "score", "recipe", "engine",
    "export", "card", "run folder", "split", "partition", "held-out examples", "callback", "local fit",
    "newcomer", "cell", "round/*", "clients/*", "comm/*", "ranks/*", "cluster/*", "distributed/*",
    "record", "report", "model card", "merged model", "class name", "prompt template", "last", "problem", "method",
    "macro f1", "nll", "confusion matrix", "paired difference", "dry run", "trial",
}  # fmt: skip
"""What a reader meets in flt's output, configuration and code."""


def test_the_glossary_has_each_word_and_each_part() -> None:
    page = (DOCS / "glossary.md").read_text()
    terms = " ".join(re.findall(r"^\| (\*\*.+?) \|", page, re.MULTILINE)).lower()
    parts = set(groups()) - {"algo", "experiment", "data", "model"}
    missing = {word for word in WORDS | parts if word.replace("_", " ").replace("optimizer", "optimi") not in terms}
    assert not missing
