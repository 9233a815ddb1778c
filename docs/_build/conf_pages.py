"""Pages made from the YAML files in conf/ and their comments: every key, every choice, and recipes line by line."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence

from flt.cli import conf_comments
from flt.cli.conf_comments import Key
from flt.run.conf_groups import COMMAND, choices, config_folder

PAPERS = ("hafl", "sa_fedlora", "fl_tac", "c2a")
"""Recipes that have a page of their own."""
KEYS = "reference/keys.md"
ARXIV = re.compile(r"arXiv ((\d{4}\.\d{5})(v\d)?)")


def place(group: str) -> str:
    """Returns the page of a config group."""
    return f"reference/parts/{group}.md"


def keys_page() -> str:
    """Returns the page of all keys in conf/train.yaml, with links to the pages of the config groups."""
    lines = ["# Keys of a run", "", "Every key can be set on the command line as `key=value`, or in `flt.fit` by"]
    lines += ["`overrides=[...]`. A list is written as `'ranks=[2,4]'`, and `null` means nothing.", ""]
    lines += ["## Parts and other choices", "", "| key | default | what is chosen |", "|---|---|---|"]
    for group, default in conf_comments.defaults().items():
        listed = ", ".join(f"[{choice}](parts/{group}.md#{anchor(choice)})" for choice in choices(group))
        lines.append(f"| [`{group}`](parts/{group}.md) | `{default}` | {listed} |")
    for section, keys in conf_comments.sections().items():
        lines += ["", f"## {section or 'The run'}", "", plain(conf_comments.section_meaning(section)), "", *_table(keys)]
    return "\n".join(lines)


def group_page(group: str) -> str:
    """Returns the page of a config group: each of its choices, and the keys of each choice."""
    default = conf_comments.defaults()[group]
    lines = [f"# `{group}=`", ""]
    lines += [f"The default is `{default}`." if default != "null" else "By default, none is chosen.", ""]
    lines += ["| choice | what it is |", "|---|---|"]
    for choice in choices(group):
        lines.append(f"| [`{choice}`](#{anchor(choice)}) | {plain(conf_comments.summary(group, choice))} |")
    for choice in choices(group):
        lines += ["", f"## `{group}={choice}` {{#{anchor(choice)}}}", "", *_choice(group, choice)]
    return "\n".join(lines)


def recipe(name: str, page: str) -> str:
    """Returns a recipe's pseudo-code, and its YAML line by line with the meaning of each line.

    Args:
        name: Name of the recipe.
        page: Page that includes the text.
    """
    file = config_folder() / "algo" / f"{name}.yaml"
    _, code = _prose_and_code(conf_comments.head(file))
    lines = ["```text", *code[-1], "```", "", "| line | what it sets |", "|---|---|"]
    meanings = {key.name: key for key in conf_comments.all_keys()}
    for key, value in conf_comments.settings(file):
        lines.append(f"| `{key}: {value}` | {_meaning(key, value, meanings, posixpath.dirname(page))} |")
    return "\n".join(lines)


def anchor(name: str) -> str:
    """Returns the anchor of a key or of a choice."""
    return name.replace(".", "-")


def plain(text: str) -> str:
    """Returns a comment of conf/ as Markdown: nothing in it is markup, and numbers of arXiv are links."""
    escaped = "".join(f"&#{ord(c)};" if c in "\\`*_{}[]<>|$#&~" else c for c in text)
    coded = re.sub("&#96;(.+?)&#96;", r"<code>\1</code>", escaped)
    return ARXIV.sub(r"arXiv [\1](https://arxiv.org/abs/\1)", coded)


def _meaning(key: str, value: str, meanings: dict[str, Key], folder: str) -> str:
    """Returns what a line of a recipe sets, with a link to the reference."""
    group = key.partition(".")[0]
    if key in conf_comments.defaults():
        link = posixpath.relpath(place(key), folder)
        return f"{plain(conf_comments.summary(key, value))} [{key}={value}]({link}#{anchor(value)})"
    page = place(group) if group in conf_comments.defaults() else KEYS
    about = meanings[key]
    where = f"{posixpath.relpath(page, folder)}#{_key_anchor(about)}"
    return f"{plain(about.meaning)} (default `{about.default}`) [{key}]({where})"


def _choice(group: str, choice: str) -> Iterator[str]:
    path = config_folder() / group / f"{choice}.yaml"
    prose, code = _prose_and_code(conf_comments.head(path))
    yield from (f"{plain(paragraph)}\n" for paragraph in prose)
    for block in code:
        language = "bash" if COMMAND.match(block[0]) else "text"
        yield from (f"```{language}", *block, "```", "")
    if group in conf_comments.RECIPES:
        if choice in PAPERS:
            yield from (f"The paper, its formulas and its results: [{choice}](../../papers/{choice}.md).", "")
        yield from ("It sets:", "", "```text", *(f"{key}={value}" for key, value in conf_comments.settings(path)), "```")
    else:
        keys = [Key(key.name, key.default, key.meaning, (choice,)) for key in conf_comments.choice_keys(group, choice)]
        yield from _table(keys) if keys else ["It has no keys."]


def _prose_and_code(head: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Splits an opening comment into its paragraphs and its blocks of commands or pseudo-code."""
    prose: list[str] = []
    code: list[list[str]] = []
    last = ""
    for line in head:
        kind = _kind(line, last)
        if kind == "prose":
            prose = [*prose[:-1], f"{prose[-1]} {line.strip()}"] if last == kind else [*prose, line.strip()]
        elif kind:
            code = [*code[:-1], [*code[-1], line]] if last == kind else [*code, [line]]
        last = kind
    shortest = [min(len(line) - len(line.lstrip()) for line in block) for block in code]
    return prose, [[line[cut:] for line in block] for block, cut in zip(code, shortest, strict=True)]


def _kind(line: str, last: str) -> str:
    if not line.strip():
        return ""
    if COMMAND.match(line):
        return "commands"
    is_code = line.startswith("    ") or line.startswith("for each") or (last == "pseudo-code" and not line[0].isupper())
    return "pseudo-code" if is_code or _begins_pseudo_code(line) else "prose"


def _begins_pseudo_code(line: str) -> bool:
    """Returns whether a line has a second column, as lines of pseudo-code have."""
    return bool(re.search(r"\S {3,}\S", line))


def _table(keys: Iterable[Key]) -> Iterator[str]:
    yield from ("| key | default | meaning |", "|---|---|---|")
    for key in keys:
        yield f'| <span id="{_key_anchor(key)}">`{key.name}`</span> | `{key.default}` | {plain(key.meaning)} |'


def _key_anchor(key: Key) -> str:
    """Returns the anchor of a key. If several choices have the key, the anchor contains the choice."""
    return "-".join([*key.choices[:1], anchor(key.name)]) if key.choices else anchor(key.name)
