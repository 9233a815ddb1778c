"""Modules that are trained whole beside an adapter, or without one."""

from __future__ import annotations

from torch import nn

from flt.models.layer_names import submodule, whole_modules
from flt.models.module import ClientModule


def freeze_but_head(module: nn.Module, head: str | None) -> list[str]:
    """Freezes a module but for its head.

    Args:
        module: Changed in place.
        head: Name of the module that is trained whole; None: the classifier, and the layers before it that the
            checkpoint lacks (DistilBERT's, a pooler); ``none``: no head.

    Returns:
        Full names of what is trained whole.

    Raises:
        InputError: There is no such head; nothing is changed then.
    """
    inner, prefix = (module.model, "model.") if isinstance(module, ClientModule) else (module, "")
    whole = {name: submodule(inner, name) for name in whole_modules(inner, head)}
    module.requires_grad_(False)
    for part in whole.values():
        part.requires_grad_(True)
    return [f"{prefix}{name}" for name in whole]
