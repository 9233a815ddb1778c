"""Registry of the engines."""

from __future__ import annotations

from flt.engines.distributed import INSIDE, DistributedSettings
from flt.engines.sharded import ShardedSettings

ENGINES: dict[str, type] = {
    **{name: kind for name, (kind, _) in INSIDE.items()},
    "distributed": DistributedSettings,
    "sharded": ShardedSettings,
}
"""Name in conf/engine/ -> class of the engine's settings."""
