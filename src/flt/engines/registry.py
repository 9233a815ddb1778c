"""Registry of the engines."""

from __future__ import annotations

from flt.engines.distributed import INNER_ENGINES, DistributedSettings
from flt.engines.sharded import ShardedSettings

ENGINES: dict[str, type] = {
    **{name: kind for name, (kind, _) in INNER_ENGINES.items()},
    "distributed": DistributedSettings,
    "sharded": ShardedSettings,
}
"""Name in conf/engine/ -> class of the engine's settings."""
