"""Freezing of a module's weights, except for its head."""

from __future__ import annotations

from torch import nn

from flt.models.layer_names import submodule, whole_modules
from flt.models.module import backbone_of


def freeze_but_head(module: nn.Module, head: str | None) -> list[str]:
    """Freezes all weights of a module except for its head.

    Args:
        module: The module, changed in place.
        head: Name of the module that is trained whole. None: the classifier and the layers before it that the
            checkpoint lacks (DistilBERT's ``pre_classifier``, a pooler). ``none``: no head.

    Returns:
        Full names of the modules that are trained whole.

    Raises:
        InputError: There is no such head. The module is unchanged then.
    """
    inner, prefix = backbone_of(module)
    trained = {name: submodule(inner, name) for name in whole_modules(inner, head)}
    module.requires_grad_(False)
    for part in trained.values():
        part.requires_grad_(True)
    return [f"{prefix}{name}" for name in trained]
