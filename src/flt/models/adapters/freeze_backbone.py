"""Freezing of a module's weights, except for its head."""

from __future__ import annotations

from torch import nn

from flt.models.layer_names import submodule, thaw, whole_modules
from flt.models.module import backbone_of
from flt.models.peft_modules import check_peft


def freeze_but_head(module: nn.Module, head: str | None) -> list[str]:
    """Freezes all weights of a module except for its head.

    Args:
        module: The module, changed in place.
        head: Name of the module whose weights are all trained. The string ``"none"`` means no module. If None, the
            classifier and all layers before it that have no pre-trained weights are trained. Such a layer may be a
            pooler or DistilBERT's ``pre_classifier``.

    Returns:
        Names, in ``module``, of the submodules whose weights are all trained.

    Raises:
        InputError: There is no module with the name of the head, or the module holds adapters of peft that flt doesn't
            support. ``module`` is then unchanged.
    """
    check_peft(module)
    inner, prefix = backbone_of(module)
    trained = {name: submodule(inner, name) for name in whole_modules(inner, head)}
    module.requires_grad_(False)
    for part in trained.values():
        thaw(part)
    return [f"{prefix}{name}" for name in trained]
