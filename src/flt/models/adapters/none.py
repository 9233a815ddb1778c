"""The setting without an adapter, for plans that train the whole model or only the head."""

from __future__ import annotations

import dataclasses

from torch import nn

from flt.core.errors import InputError
from flt.models.adapters.freeze_backbone import freeze_but_head
from flt.protocol.layout import Layout


@dataclasses.dataclass
class NoAdapterSettings:
    """Settings of ``adapter=none``, which attaches nothing.

    Attributes:
        name: Always ``none``.
        head: Name of the module whose weights are all trained. The string ``"none"`` means no module. If None, the
            classifier and all layers before it that have no pre-trained weights are trained. Such a layer may be a
            pooler or DistilBERT's ``pre_classifier``.
    """

    name: str = "none"
    head: str | None = None


def attach(module: nn.Module, settings: NoAdapterSettings, seed: int, layers: str = "all") -> Layout:
    """Freezes all weights of a module except for its head. Returns the module's layout.

    Args:
        module: The module, changed in place.
        settings: Name of the head.
        seed: Unused, because nothing is drawn at random.
        layers: Must be ``all``, because there is no adapter that could be left out of some blocks.

    Raises:
        InputError: There is no module with the name of the head, or layers isn't ``all``.
    """
    if layers != "all":
        raise InputError.of("model.adapt_layers", layers, "all", "adapter=none adapts no blocks")
    return Layout.of(module, freeze_but_head(module, settings.head))
