"""Templates for the prompts of instruction data. Names of columns in braces stand for the texts of a row."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets

from flt.core.errors import InputError
from flt.data.columns import check_text, choose_column

if TYPE_CHECKING:
    from flt.data.config import DataConfig

TASKS = ("instruction", "prompt", "question", "text")
"""Usual names of the column that contains the instruction."""
CONTEXTS = ("context", "input")
"""Usual names of the column that contains further text for the instruction."""


@dataclass(frozen=True)
class Template:
    """Template of a prompt.

    Attributes:
        pieces: Pairs (literal text, name of the column whose text follows). If no column follows the text, the
            name is None.

    Example:
        >>> template = Template.parse("Task: {instruction} Answer:", ["instruction"])
        >>> template.fill({"instruction": "Name a colour."}), template.tail
        ('Task: Name a colour. Answer:', ' Answer:')
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str, present: Sequence[str]) -> Template:
        """Parses a template. A doubled brace stands for one brace of the prompt.

        Raises:
            InputError: A column doesn't exist, the template contains no column, or a brace has no counterpart.
        """
        try:
            found = list(string.Formatter().parse(text))
        except ValueError as error:
            raise InputError.of("data.prompts", repr(text), "text with columns in braces", str(error)) from None
        for _, name, spec, conversion in found:
            if name is not None and (name not in present or spec or conversion):
                why = "no such column (a brace of the text itself is doubled)"
                raise InputError.of("data.prompts", f"{{{name}}}", present, why)
        if all(name is None for _, name, _, _ in found):
            raise InputError.of("data.prompts", repr(text), f"one of {{{'}, {'.join(present)}}} in it")
        return cls(tuple((literal, name) for literal, name, _, _ in found))

    @property
    def columns(self) -> list[str]:
        """Names of the template's columns, in order."""
        return [name for _, name in self.pieces if name is not None]

    def __str__(self) -> str:
        """Returns the template as :meth:`parse` reads it.

        Example:
            >>> str(Template.parse("{{a}} {text}:", ["text"]))
            '{{a}} {text}:'
        """
        literals = [literal.replace("{", "{{").replace("}", "}}") for literal, _ in self.pieces]
        columns = ["" if name is None else f"{{{name}}}" for _, name in self.pieces]
        return "".join(literal + column for literal, column in zip(literals, columns, strict=True))

    @property
    def tail(self) -> str:
        """Literal text after the last column."""
        literal, name = self.pieces[-1]
        return literal if name is None else ""

    def fill(self, row: Mapping[str, str]) -> str:
        """Returns the prompt for one row.

        Args:
            row: Column -> text.
        """
        return "".join(literal + (row[name] if name else "") for literal, name in self.pieces)


def choose(cfg: DataConfig, features: datasets.Features) -> tuple[Template, ...]:
    """Returns the templates that the user has set, or otherwise default templates.

    The default templates contain the column of the instruction and, if there is one, the column of its context.

    Raises:
        InputError: A column doesn't exist or doesn't contain text, or a template contains the response.
    """
    found = by_name(cfg, list(features))
    check_text("response", cfg.response or "", features)
    for name in dict.fromkeys(name for template in found for name in template.columns):
        check_text("prompts", name, features)
        if name == cfg.response:
            raise InputError.of("data.prompts", f"{{{name}}}", "other columns", "it is data.response, the target")
    return found


def by_name(cfg: DataConfig, names: Sequence[str]) -> tuple[Template, ...]:
    """Returns the templates like :func:`choose`, without looking at what the columns hold.

    Raises:
        InputError: A column doesn't exist.
    """
    choose_column("response", cfg.response, (), names)
    if cfg.prompts:
        return tuple(Template.parse(text, names) for text in cfg.prompts)
    task = choose_column("text", cfg.text, TASKS, names)
    given = choose_column("text_pair", cfg.text_pair, (), names) if cfg.text_pair else None
    return _usual(task, given or next((name for name in CONTEXTS if name in names), None))


def choose_template(templates: Sequence[Template], row: Mapping[str, str]) -> Template:
    """Returns the first template whose columns all contain text in this row. If there is none, the last is returned.

    Example:
        >>> both = [Template.parse(text, ["a", "b"]) for text in ("{a} by {b}", "only {a}")]
        >>> choose_template(both, {"a": "x", "b": " "}).fill({"a": "x", "b": " "})
        'only x'
    """
    full = (template for template in templates if all(row[name].strip() for name in template.columns))
    return next(full, templates[-1])


def _usual(task: str, context: str | None) -> tuple[Template, ...]:
    """Returns a template with only the instruction. If there is a context, a template with both comes before it."""
    end = ("\n\n### Answer:\n", None)
    alone = Template((("### Task:\n", task), end))
    return (Template((("### Task:\n", task), ("\n\n### Context:\n", context), end)), alone) if context else (alone,)
