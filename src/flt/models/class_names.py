"""Names of a model's outputs, in the config of transformers (``id2label``), where plain transformers finds them too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

SINGLE_LABEL = "single_label_classification"
"""Value of ``problem_type`` in transformers for a classifier whose classes exclude each other."""
LONGEST = 1000
"""Largest number of characters of the name of an output. A longer name is cut."""


def output_names(tasks: Iterable[Sequence[str]]) -> list[str]:
    """Returns a name for each output of a head that one or several tasks use.

    Args:
        tasks: Names of the classes of each task.

    Example:
        >>> output_names([["ham", "spam"], ["bad", "good", "great"]])
        ['ham / bad', 'spam / good', 'great']
    """
    own = list(dict.fromkeys(map(tuple, tasks)))
    width = max(map(len, own), default=0)
    found = [dict.fromkeys(names[i] for names in own if i < len(names)) for i in range(width)]
    return [" / ".join(names)[:LONGEST] for names in found]


def name_outputs(config: Any, names: Sequence[str]) -> None:
    """Writes the names of a model's outputs into its config. Outputs without a name keep transformers' ``LABEL_<i>``.

    Args:
        config: Config of a transformers model.
        names: Name of each output. Names that are left over are ignored.
    """
    names = [*names, *_plain(config.num_labels)[len(names) :]][: config.num_labels]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def name_models_inside(module: nn.Module, names: Sequence[str]) -> None:
    """Names the outputs of all transformers models inside a module that have as many outputs, and no names yet."""
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if names and getattr(config, "id2label", None) == dict(enumerate(_plain(len(names)))):
            name_outputs(config, names)


def _plain(outputs: int) -> list[str]:
    """Returns the names that transformers gives outputs without names."""
    return [f"LABEL_{number}" for number in range(outputs)]
