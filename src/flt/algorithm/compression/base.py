"""Base class of the compressions, and the recipes that a compression refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from flt.algorithm.base import Part
from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.protocol.messages import Payload, Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe


class CompressionPart(Part):
    """Compression of the messages between server and clients."""

    kind: ClassVar[str] = "compression"
    packs: ClassVar[bool] = False
    """True if the values that the receiver gets can differ from the values before compression."""

    @property
    def down(self) -> bool:
        """True if payloads (server to client) are compressed as well as updates (client to server)."""
        return False

    def compress_updates(self, layout: Layout, updates: list[Update]) -> list[Update]:
        """Returns the compressed updates of one client's jobs. There is at least one update."""
        return updates

    def compress_payload(self, layout: Layout, payload: Payload, scores: Mapping[str, Tensor], jobs: int) -> Payload:
        """Returns the compressed payload of one job.

        Args:
            layout: Names and roles of the tensors.
            payload: The payload before compression.
            scores: Scores of the job's group, by layer.
            jobs: Number of jobs that the job's client has in the round.
        """
        return payload

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a compression that changes values, if another part needs the exact values that were sent."""
        if not self.packs:
            return
        if recipe.rule.sent_slots:
            why = f"{recipe.rule.name} derives from exact weights what the clients keep"
            raise InputError.of("compression", self.name, "none", why)
        if self.down:
            self._check_down(recipe)

    def _check_down(self, recipe: Recipe) -> None:
        selection, importance = recipe.selection, recipe.importance
        refused = {
            f"selection {selection.name}": (
                bool(selection.together), "a client takes the components that it is sent for its rank"),
            f"importance {importance.name}": (
                importance.source == "change", "the change would have the rounding on the way down in it"),
            "grouping.features=changes": (
                recipe.grouping.reads_changes, "the changes would have the rounding on the way down in them"),
            "a transfer between clusters": (
                recipe.transfer.mixes, "the clusters' changes would have the rounding on the way down in them"),
        }  # fmt: skip
        for part, (clashes, why) in refused.items():
            if clashes:
                raise InputError.of("compression.down", "true", f"false with {part}", why)
