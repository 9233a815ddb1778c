"""A federated method, composed of one part of each kind."""

from __future__ import annotations

import dataclasses

from lightning.pytorch import Callback

from flt.algorithm.base import (
    GroupingPart,
    ImportancePart,
    Part,
    PlanPart,
    SchedulePart,
    SelectionPart,
)
from flt.algorithm.buffers import Average, BuffersPart
from flt.algorithm.compression.base import CompressionPart
from flt.algorithm.compression.methods import NoCompression
from flt.algorithm.grouping.base import Everyone
from flt.algorithm.importance import NoImportance
from flt.algorithm.plan import AdapterPlan
from flt.algorithm.rule.base import Rule, Summable
from flt.algorithm.schedule import Constant
from flt.algorithm.selection.all import All
from flt.algorithm.server_optimizer import NoServerOptimizer, ServerOptimizerPart
from flt.algorithm.transfer import NoTransfer, TransferPart
from flt.client.fit import LocalFit
from flt.core.errors import InputError
from flt.protocol.entries import FIXED
from flt.protocol.layout import BUFFER, Layout


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A federated method: one part of each kind. Each YAML file in conf/algo names the parts of one method.

    Raises:
        InputError: Two parts can't be combined.
    """

    rule: Rule
    plan: PlanPart = AdapterPlan()
    schedule: SchedulePart = Constant()
    selection: SelectionPart = All()
    importance: ImportancePart = NoImportance()
    grouping: GroupingPart = Everyone()
    compression: CompressionPart = NoCompression()
    transfer: TransferPart = NoTransfer()
    server_optimizer: ServerOptimizerPart = NoServerOptimizer()
    buffers: BuffersPart = Average()

    def __post_init__(self) -> None:
        for part in self.parts:
            part.check_recipe(self)

    @property
    def parts(self) -> list[Part]:
        """All parts, in the order in which their checks are called."""
        first = (self.plan, self.rule, self.schedule, self.selection, self.importance, self.grouping)
        return [*first, self.compression, self.transfer, self.server_optimizer, self.buffers]

    @property
    def streams(self) -> bool:
        """True if the server adds each update to running sums and then discards the update's tensors."""
        return isinstance(self.rule, Summable) and not self.grouping.several

    @property
    def changes_base(self) -> bool:
        """True if the recipe changes base weights in at least one round. Most recipes never change them."""
        return self.rule.changes_base or "base" in self.plan.roles

    @property
    def reads_held_out(self) -> bool:
        """True if a part needs losses on examples that clients hold out."""
        return any(part.reads_held_out for part in self.parts)

    def frozen(self, layout: Layout) -> list[str]:
        """Returns the names of the base weights that the recipe may change. The list can be empty."""
        adapted = [layer.base for layer in layout.layers.values()] if self.rule.changes_base else []
        return [*adapted, *(layout.names(["base"]) if "base" in self.plan.roles else [])]

    def check(self, layout: Layout) -> None:
        """Refuses a module if it lacks tensors that a part needs, or if the plan trains none of its tensors.

        Raises:
            InputError: The module lacks tensors that a part needs, or the plan trains none of the module's tensors.
        """
        roles = {entry.role for entry in layout.entries.values()} - ({"base", BUFFER, FIXED} - self.plan.roles)
        if not roles & set(self.plan(0).train):
            allowed = sorted(roles) or "a plan that trains the base, or another adapter"
            raise InputError.of("plan.train", self.plan(0).train, allowed, "the module has nothing else to train")
        for part in self.parts:
            part.check_layout(self, layout)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the Lightning callbacks of one local fit, in the order in which Lightning calls them.

        The importance's callbacks come first, because they measure the gradient of the loss, which other callbacks
        change. The selection's callbacks come last, because they set the gradients of frozen components to zero.
        """
        parts = (self.importance, self.plan, self.rule, self.selection)
        return [callback for part in parts for callback in part.callbacks(fit)]
