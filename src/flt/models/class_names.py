"""Names of a model's outputs, in the config of transformers (``id2label``), where plain transformers finds them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from flt.data.output_names import LONGEST as LONGEST
from flt.data.output_names import output_names as output_names

SINGLE_LABEL = "single_label_classification"
"""Value of ``problem_type`` in transformers for a classifier whose classes exclude each other."""


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
