"""Table of the adapters by name."""

from __future__ import annotations

from collections.abc import Callable

from flt.models.adapters import c2a, houlsby, lora, none
from flt.protocol.layout import Layout

ADAPTERS: dict[str, tuple[type, Callable[..., Layout]]] = {
    "lora": (lora.LoraSettings, lora.attach),
    "c2a": (c2a.C2ASettings, c2a.attach),
    "houlsby": (houlsby.HoulsbySettings, houlsby.attach),
    "none": (none.NoAdapterSettings, none.attach),
}
"""Name of the adapter -> (class of its settings, function that attaches the adapter).

The names are those of the files in conf/adapter/. Each function has the arguments (module, settings, seed, layers) and
returns the module's layout.
"""
