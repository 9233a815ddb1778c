"""No adapter: for plans that train the whole model, or the head alone."""

from __future__ import annotations

import dataclasses

from torch import nn

from flt.core.errors import InputError
from flt.models.adapters.freeze import freeze_but_head
from flt.protocol.layout import Layout


@dataclasses.dataclass
class NoAdapterSettings:
    """Nothing is attached.

    Attributes:
        name: Always ``none``.
        head: Name of the module that is trained whole; None: the classifier, and the layers before it that the
            checkpoint lacks (DistilBERT's, a pooler); ``none``: no head.
    """

    name: str = "none"
    head: str | None = None


def attach(module: nn.Module, settings: NoAdapterSettings, seed: int, layers: str = "all") -> Layout:
    """Freezes a module but for its head, and says which of its tensors have which role.

    Args:
        module: Changed in place.
        settings: Which module is the head.
        seed: Nothing is drawn.
        layers: ``all``: there is no adapter to put into some blocks only.

    Raises:
        InputError: The head isn't there, or blocks to adapt were named.
    """
    if layers != "all":
        raise InputError.of("model.adapt_layers", layers, "all", "adapter=none adapts no blocks")
    return Layout.of(module, freeze_but_head(module, settings.head))
