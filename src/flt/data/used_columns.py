"""Choice of the columns that are read from a file. A table may have a million columns, of which a run uses two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flt.core.errors import InputError
from flt.data import columns, templates

if TYPE_CHECKING:
    from flt.data.config import DataConfig

SPLIT = "split"
"""Name of the column that says which split a row of a file belongs to."""
CHATS = ("messages", "conversations", "conversation", "chat")
"""Usual names of a column of chats, which are lists of messages."""


def used_columns(cfg: DataConfig, names: Sequence[str]) -> list[str]:
    """Returns the columns that the settings of a data set use, in the order of the file.

    Args:
        cfg: Settings of the data set.
        names: Names of the file's columns.

    Raises:
        InputError: Two columns have the same name, a column that is needed doesn't exist, or there are only chats.
    """
    check_names(cfg, names)
    _check_chat(cfg, names)
    if cfg.response is not None:
        inputs = [name for template in templates.by_name(cfg, names) for name in template.columns]
    else:
        inputs = list(columns.input_names(cfg, names)[1])
        columns.choose_column("label", cfg.label, columns.LABELS, names)
    given = {"label_name": cfg.label_name, "column": cfg.column, **{f"where.{name}": name for name in cfg.where}}
    for key, name in given.items():
        if name is not None:
            columns.choose_column(key, name, (), names)
    usual = (SPLIT, *columns.LABELS, *columns.LABEL_NAMES)
    wanted = {*inputs, *given.values(), *usual, cfg.response, cfg.label}
    return [name for name in names if name in wanted]


def check_names(cfg: DataConfig, names: Sequence[str]) -> None:
    """Checks that no two columns have the same name.

    Raises:
        InputError: Two have the same.
    """
    known: set[str] = set()
    for number, name in enumerate(names, start=1):
        if name in known and name:  # a spreadsheet's empty columns have no names
            why = f"column {number} has another's"
            raise InputError.of("data.path", cfg.path, "a name of its own for each column", why)
        known.add(name)


def _check_chat(cfg: DataConfig, names: Sequence[str]) -> None:
    """Checks that there is a text beside a column of chats, or that the user has named one."""
    chat = cfg.response or next((name for name in CHATS if name in names), None)
    usual = {*templates.TASKS, *columns.TEXTS, *columns.IMAGES, *(name for pair in columns.TEXT_PAIRS for name in pair)}
    if chat in CHATS and chat in names and not (cfg.text or cfg.image or cfg.prompts or usual & set(names)):
        allowed = "a column of texts; write each chat as a prompt (data.text) and a response (data.response)"
        raise InputError.of("data.response", chat, allowed, "chats, which are lists of messages, aren't read")
