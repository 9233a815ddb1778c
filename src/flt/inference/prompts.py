"""The prompts of a run: how the texts that somebody gives become the prompt that the run's model was trained with."""

from __future__ import annotations

import dataclasses
import os
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flt.core.errors import InputError
from flt.core.files import expand_user, reported
from flt.core.typed import first_line, typed
from flt.data.config import DataConfig
from flt.data.reading import read_file
from flt.data.suffixes import SUFFIXES, suffix_of
from flt.data.templates import CONTEXTS, TASKS, Template, by_name, choose_template

PROMPT, CONTEXT = "prompt", "context"
"""Names by which every run's prompts have a text, and some a second one, whatever the data call their columns."""
_MESSAGE_KEY = re.compile(r"message\[[\"'](?!(?:role|content)[\"'])(\w+)[\"']\]")
"""Pattern of a message's keys in a chat template, but for those of every message."""
Fields = Mapping[str, str]
"""Column of the template, ``prompt`` or ``context`` -> its text."""


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """The form of a run's prompts.

    Attributes:
        columns: Columns whose texts are put into a prompt.
        aliases: Further name of a column -> the column, such as ``prompt`` -> ``instruction``.
        write: Function that makes the prompt of a row, column -> text.
    """

    columns: tuple[str, ...]
    aliases: Mapping[str, str]
    write: Callable[[dict[str, str]], str]

    @property
    def names(self) -> list[str]:
        """Names that a text can be given under."""
        return [*dict.fromkeys([*self.columns, *self.aliases])]

    def fill(self, fields: Fields) -> str:
        """Returns the prompt of some texts. A column without a text is empty, as a missing text is in training.

        Raises:
            InputError: A name isn't one of :attr:`names`, a column is given twice, or all texts are empty.
        """
        row = dict.fromkeys(self.columns, "")
        for name, text in fields.items():
            column = name if name in row else self.aliases.get(name)
            if column is None:
                raise InputError.of(name, text, self.names, "the run's prompts have no such text")
            if row[column]:
                raise InputError.of(name, text, f"{column} only once, as {name} is {column}")
            row[column] = text
        if not any(text.strip() for text in row.values()):
            raise InputError.of(PROMPT, "", f"a text for {' or '.join(self.names)}")
        return self.write(row)


AS_IT_IS = PromptFormat((PROMPT,), {}, lambda row: row[PROMPT])
"""The text itself is the prompt."""


def prompts_of_data(settings: Mapping[str, Any], set_name: str | None = None) -> PromptFormat:
    """Returns the form that the templates of a run's data give to its prompts.

    Args:
        settings: The section ``data`` of the run's configuration.
        set_name: Name of one of the data sets in ``data.sets``. None: the only one, or any of them if
            all have the same prompts.

    Raises:
        InputError: The data have no responses, so that no model wrote any; there is no such data set, or none is named
            although their prompts differ.
    """
    sets = settings.get("sets") or {}
    if set_name is not None and set_name not in sets:
        raise InputError.of("set", set_name, list(sets) or "nothing, as the run has one data set")
    used = [set_name] if set_name is not None else settings.get("use") or list(sets)
    common = {key: value for key, value in settings.items() if key not in ("sets", "use", "tasks")}
    known = {field.name for field in dataclasses.fields(DataConfig)}  # those of a newer version are left out
    found = {}
    for name in used or [""]:
        merged = {**common, **sets.get(name, {})}
        found[name] = _of_data(typed(DataConfig, {k: v for k, v in merged.items() if k in known}, "data"))
    formats = [(one.columns, str(templates)) for one, templates in found.values()]
    if any(one != formats[0] for one in formats):
        raise InputError.of("set", "", list(found), "the prompts of the run's data sets differ")
    return next(one for one, _ in found.values())


def prompts_of_chat(tokenizer: Any) -> PromptFormat | None:
    """Returns the form that a tokenizer's chat template gives to one message of a user. None: it has no template.

    A template that flt has exported takes the texts of further columns as keys of the message, such as ``context``.
    """
    if not isinstance(tokenizer.chat_template, str):
        return None
    further = [key for key in dict.fromkeys(_MESSAGE_KEY.findall(tokenizer.chat_template)) if key != PROMPT]

    def write(row: dict[str, str]) -> str:
        message = {"role": "user", "content": row[PROMPT], **{key: row[key] for key in further}}
        try:
            return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        except Exception as error:  # what the template of a stranger's file raises
            raise InputError.of("chat_template", "?", "a template of one message", first_line(error)) from error

    return PromptFormat((PROMPT, *further), {}, write)


def read_prompts(path: str | Path, names: Sequence[str]) -> list[dict[str, str]]:
    """Reads a file of prompts.

    Args:
        path: A ``.txt`` with a prompt in each line, or a table of another kind that flt reads, such as a .jsonl or .csv
            with a column for each text of the prompts. Empty lines, and other columns, are left out.
        names: Names of the columns that count, such as :attr:`PromptFormat.names`.

    Raises:
        InputError: The file can't be read, or has no prompts.
    """
    file = expand_user(path)
    allowed = f"a .txt with a prompt in each line, or a table ({', '.join(SUFFIXES)})"
    if not os.path.isfile(file) or not suffix_of(file.name):
        raise InputError.of("prompts", path, allowed, "" if os.path.isfile(file) else "there is no such file")
    if suffix_of(file.name) == ".txt":
        with reported("prompts", path, allowed):
            try:
                lines = file.read_bytes().decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise InputError.of("prompts", path, "a file in UTF-8", first_line(error)) from None
        rows = [{PROMPT: line} for line in lines if line.strip()]
    else:
        table = next(iter(read_file(file).values()))
        present = [name for name in names if name in table.column_names]
        if not present:
            raise InputError.of("prompts", path, f"one of the columns {', '.join(names)}", "it has none of them")
        columns = table.select_columns(present)
        rows = [{name: "" if text is None else str(text) for name, text in row.items()} for row in columns]
    if not rows:
        raise InputError.of("prompts", path, allowed, "there is no prompt in it")
    return rows


def _of_data(cfg: DataConfig) -> tuple[PromptFormat, tuple[Template, ...]]:
    if cfg.response is None:
        why = "its data have no responses, so its model writes no text"
        raise InputError.of("run's data.response", None, "a run of a causal model, such as one of data=dolly", why)
    task, context = cfg.text or TASKS[0], cfg.text_pair or CONTEXTS[0]
    columns = _columns(cfg.prompts) if cfg.prompts else [task, context]
    templates = by_name(cfg, [cfg.response, *columns])
    last = templates[-1].columns  # that of a row without a context
    main = cfg.text if cfg.text is not None and cfg.text in last else last[0]
    second = next((name for name in (cfg.text_pair, *CONTEXTS) if name in columns and name != main), None)
    aliases = {PROMPT: main} | ({CONTEXT: second} if second else {})
    own = {name: column for name, column in aliases.items() if name not in columns}

    def write(row: dict[str, str]) -> str:
        return choose_template(templates, row).fill(row)

    return PromptFormat(tuple(columns), own, write), templates


def _columns(prompts: Sequence[str]) -> list[str]:
    """Returns the names in braces of some templates, in the order in which they come first."""
    try:
        return list(dict.fromkeys(name for text in prompts for _, name, _, _ in string.Formatter().parse(text) if name))
    except ValueError as error:
        raise InputError.of("data.prompts", prompts, "text with columns in braces", first_line(error)) from None
