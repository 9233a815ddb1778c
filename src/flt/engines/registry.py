"""The engines by name."""

from __future__ import annotations

from flt.engines.distributed import INSIDE, StrategySettings
from flt.engines.sharded import ShardedSettings

ENGINES: dict[str, type] = {
    **{name: kind for name, (kind, _) in INSIDE.items()},
    "strategy": StrategySettings,
    "sharded": ShardedSettings,
}
"""Name in conf/engine/ -> its settings."""
