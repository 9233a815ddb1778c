"""A federated method, composed of one part of each kind."""

from __future__ import annotations

import dataclasses

from lightning.pytorch import Callback

from flt.algorithm.base import (
    CompressionPart,
    GroupingPart,
    ImportancePart,
    Part,
    PlanPart,
    SchedulePart,
    SelectionPart,
)
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
from flt.protocol.layout import Layout


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A federated method: one part of each kind. Each YAML in conf/algo chooses the parts of one paper.

    Raises:
        InputError: A part has no meaning together with another one.
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

    def __post_init__(self) -> None:
        for part in self.parts:
            part.check_recipe(self)

    @property
    def parts(self) -> list[Part]:
        """All parts, in the order in which they are asked what they can't go with."""
        first = (self.plan, self.rule, self.schedule, self.selection, self.importance, self.grouping)
        return [*first, self.compression, self.transfer, self.server_optimizer]

    @property
    def streams(self) -> bool:
        """True if the server can discard an update after adding it to the running sums."""
        return isinstance(self.rule, Summable) and not self.grouping.several

    @property
    def changes_base(self) -> bool:
        """True if some round changes the frozen weights."""
        return self.rule.changes_base or "base" in self.plan.roles

    def frozen(self, layout: Layout) -> list[str]:
        """Returns the names of the frozen weights that some round may change."""
        adapted = [layer.base for layer in layout.layers.values()] if self.rule.changes_base else []
        return [*adapted, *(layout.names(["base"]) if "base" in self.plan.roles else [])]

    def check(self, layout: Layout) -> None:
        """Refuses a module without the tensors that a part works on or that the plan trains.

        Raises:
            InputError: A part needs rank-1 components and there are none, or no tensor has a role that trains.
        """
        roles = {entry.role for entry in layout.entries.values()} - ({"base"} - self.plan.roles)
        if not roles & set(self.plan(0).train):
            allowed = sorted(roles) or "a plan that trains the base, or another adapter"
            raise InputError.of("plan.train", self.plan(0).train, allowed, "the module has nothing else to train")
        for part in self.parts:
            part.check_layout(self, layout)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the local callbacks of one fit, in the order in which they read and change a gradient.

        Importance is measured on the gradient of the loss alone, and frozen gradients are zeroed last.
        """
        parts = (self.importance, self.plan, self.rule, self.selection)
        return [callback for part in parts for callback in part.callbacks(fit)]
