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


def used_columns(cfg: DataConfig, names: Sequence[str]) -> list[str]:
    """Returns the columns that the settings of a data set use, in the order of the file.

    Args:
        cfg: Settings of the data set.
        names: Names of the file's columns.

    Raises:
        InputError: Two columns have the same name, or a column that is needed doesn't exist.
    """
    _check_names(cfg, names)
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


def _check_names(cfg: DataConfig, names: Sequence[str]) -> None:
    known: set[str] = set()
    for number, name in enumerate(names, start=1):
        if name in known:
            why = f"column {number} has another's"
            raise InputError.of("data.path", cfg.path, "a name of its own for each column", why)
        known.add(name)
