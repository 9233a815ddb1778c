"""A method as a choice of parts, and which parts have no meaning together."""

from __future__ import annotations

import dataclasses

from lightning.pytorch import Callback

from flt.algorithm.base import (
    CompressionPart,
    GroupingPart,
    ImportancePart,
    PlanPart,
    SchedulePart,
    SelectionPart,
    ServerOptimizerPart,
    TransferPart,
)
from flt.algorithm.compression.methods import NoCompression
from flt.algorithm.grouping.base import Clustering, Everyone
from flt.algorithm.importance import NoImportance
from flt.algorithm.plan import AdapterPlan, LearningRateFactor, Proximal
from flt.algorithm.rule.base import Rule, Summable
from flt.algorithm.rule.mean import NORM
from flt.algorithm.schedule import Constant
from flt.algorithm.selection.all import All
from flt.algorithm.server_optimizer import NoServerOptimizer
from flt.algorithm.transfer import NoTransfer
from flt.client.fit import LocalFit
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS, Layout


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method: one part of each kind. A paper is a choice of these in a YAML of conf/algo."""

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
        rule, importance, grouping = (type(part).__name__ for part in (self.rule, self.importance, self.grouping))
        if self.grouping.several and self.rule.one_group:
            raise InputError(f"rule {rule} with grouping {grouping}: {self.rule.one_group}; allowed is one group")
        if self.rule.whole or self.rule.mixes_components:
            self._check_components()
        if self.server_optimizer.steps:
            self._check_steps()
        if self.selection.personal and self.importance.source != "clients":
            why = f"clients measure nothing for {importance}"
            raise InputError.of("selection.scores", "client", "server, or importance=gradient", why)
        if self.importance.source in ("change", "weights") and self.rule.starts_afresh:
            why = "each round begins with a fresh adapter"
            raise InputError(f"importance {importance} with rule {rule}: {why}; allowed is gradient or none")
        if isinstance(self.grouping, Everyone) and not isinstance(self.transfer, NoTransfer):
            why = "there are no clusters to take over from"
            raise InputError.of("transfer", type(self.transfer).__name__, "none with grouping=everyone", why)
        if "base" in self.plan.roles:
            self._check_base()
        if self.schedule.cuts:
            self._check_cuts()
        if self.compression.packs:
            self._check_compression()
        self._check_roles()

    def _check_roles(self) -> None:
        """What a part works on has to train, or to travel."""
        plan, needed = self.plan(0), self.rule.combines
        if missing := set(needed) - (set(plan.train) - set(plan.private)):
            why = f"{type(self.rule).__name__} combines {', '.join(sorted(missing))}"
            raise InputError.of("plan.train", plan.train, f"{', '.join(needed)} among them", why)
        if self.rule.weights == NORM and (hidden := sorted(set(LORA_FACTORS) & set(plan.train) & set(plan.private))):
            why = f"plan.private keeps {', '.join(hidden)} at the clients, and the server weighs by products"
            raise InputError.of("rule.weights", NORM, "examples, uniform", why)
        together = set(self.selection.together)
        if not any(together <= set(self.plan(done).train) for done in range(self.plan.initiating + 1)):
            selection, plan_name = type(self.selection).__name__, type(self.plan).__name__
            why = f"no round trains {' and '.join(sorted(together))} together"
            raise InputError(f"selection {selection} with plan {plan_name}: {why}; allowed is one that does")
        if together and self.rule.starts_afresh:
            rule, selection = type(self.rule).__name__, type(self.selection).__name__
            why = "each round begins with a fresh adapter, and no component of it fades"
            raise InputError(f"selection {selection} with rule {rule}: {why}; allowed is all, truncate or freeze")

    def _check_components(self) -> None:
        """A rule on whole products needs all pairs of all clients, and leaves new ones."""
        rule, importance, selection = (type(part).__name__ for part in (self.rule, self.importance, self.selection))
        if self.rule.whole and not isinstance(self.selection, All):
            raise InputError(f"rule {rule} with selection {selection}: {self.rule.whole}; allowed is all")
        if self.compression.packs:
            why = "a budget of bytes drops components, and the rule needs all that a client trained"
            raise InputError(f"compression {type(self.compression).__name__} with rule {rule}: {why}; allowed is none")
        if self.rule.mixes_components and self.selection.freezes:
            why = "frozen components are a part of a client's product, and aren't sent"
            raise InputError(
                f"rule {rule} with selection {type(self.selection).__name__}: {why}; allowed is truncate, all"
            )
        if self.rule.mixes_components and self.importance.source != "nothing":
            why = "its components are new mixtures, of which nothing was measured"
            raise InputError(f"importance {importance} with rule {rule}: {why}; allowed is none")

    def _check_steps(self) -> None:
        """A server optimiser steps along the clients' change, and along nothing else."""
        optimizer, rule = type(self.server_optimizer).__name__, type(self.rule).__name__
        if self.rule.changes_base or self.rule.mixes_components:
            why = "a part of its answer isn't the adapter's change"
            raise InputError(f"server_optimizer {optimizer} with rule {rule}: {why}; allowed is none")
        if not self.plan.roles - set(self.plan(0).private):
            raise InputError.of("server_optimizer", optimizer, "none", "clients send nothing to step along")
        if self.compression.down:
            why = "the change would have the rounding on the way down in it"
            raise InputError.of("compression.down", "true", f"false with server_optimizer {optimizer}", why)

    def check(self, layout: Layout) -> None:
        """Refuses a module that lacks what a part works on, or what the plan lets train.

        Raises:
            InputError: There are no rank-1 pairs and a part needs them, or no tensor of a role that trains.
        """
        roles = {entry.role for entry in layout.entries.values()} - ({"base"} - self.plan.roles)
        if not roles & set(self.plan(0).train):
            allowed = sorted(roles) or "a plan that trains the base, or another adapter"
            raise InputError.of("plan.train", self.plan(0).train, allowed, "the module has nothing else to train")
        self._check_read(layout)
        for group in ("plan", "rule", "schedule", "selection", "importance", "compression"):
            part = getattr(self, group)
            if missing := sorted(set(part.needs) - roles):
                why = f"it works on rank-1 components, and the adapter has no {' and no '.join(missing)}"
                raise InputError.of(group, type(part).__name__, f"another {group}, or adapter=lora", why)

    def _check_read(self, layout: Layout) -> None:
        """Tensors to cluster have to train, and to travel from every job."""
        if not (isinstance(self.grouping, Clustering) and self.grouping.several and self.grouping.by_features):
            return
        sent = self.plan.roles - set(self.plan(0).private)
        if not any(layout.entries[name].role in sent for name in self.grouping.reads(layout)):
            grouping = f"{type(self.grouping).__name__} with grouping.tensors={self.grouping.tensors}"
            why = "none of the tensors that it clusters trains and is sent by every job"
            raise InputError.of("grouping", grouping, "everyone, or a plan that sends some", why)

    @property
    def streams(self) -> bool:
        """Whether the server needs no update once it was added to the sums."""
        return isinstance(self.rule, Summable) and not self.grouping.several

    @property
    def changes_base(self) -> bool:
        """Whether some round changes the frozen weights."""
        return self.rule.changes_base or "base" in self.plan.roles

    def frozen(self, layout: Layout) -> list[str]:
        """Names of the frozen weights that some round may change."""
        adapted = [layer.base for layer in layout.layers.values()] if self.rule.changes_base else []
        return [*adapted, *(layout.names(["base"]) if "base" in self.plan.roles else [])]

    def _check_base(self) -> None:
        """There is one base, and one part alone may write into it."""
        plan = f"plan {type(self.plan).__name__}, which trains the base"
        rule, grouping = type(self.rule).__name__, type(self.grouping).__name__
        if self.grouping.several:
            raise InputError(f"{plan}, with grouping {grouping}: there is one base; allowed is everyone")
        if self.rule.changes_base:
            raise InputError(f"{plan}, with rule {rule}: it writes into the base too; allowed is mean")

    def _check_cuts(self) -> None:
        """What goes has to be known, and nothing may remember the factors that an SVD replaces."""
        schedule = type(self.schedule).__name__
        if self.rule.starts_afresh:
            why = "each round begins with a fresh adapter"
            raise InputError(f"schedule {schedule} with rule {type(self.rule).__name__}: {why}; allowed is constant")
        if not self.schedule.falls:
            return
        if self.schedule.by == "score" and self.importance.source == "nothing":
            raise InputError.of("importance", "none", "gradient, delta or magnitude", f"{schedule} cuts by it")
        if self.schedule.by == "svd" and (
            self.grouping.several or self.rule.sends or self.selection.personal or self.server_optimizer.steps
        ):
            why = "the groups' factors, or what is kept of them, would no longer belong together"
            allowed = "score with several groups, slots, clients' own scores or a server optimiser"
            raise InputError.of("schedule.by", "svd", allowed, why)
        heated = self.schedule.heated
        private = sorted(set(LORA_FACTORS) & set(self.plan(max(0, (heated or 1) - 1)).private))
        if private and (self.schedule.by == "svd" or self.importance.source != "clients"):
            why = f"the server would cut by what it has, and plan.private keeps {', '.join(private)} at the clients"
            raise InputError.of("schedule.by", self.schedule.by, "score with importance=gradient", why)
        if heated is not None and not any(set(LORA_FACTORS) & set(self.plan(done).train) for done in range(heated)):
            why = "no round before the first cut trains the components"
            allowed = "schedule.heat >= 1, with a plan that trains them"
            raise InputError(f"schedule {schedule} with plan {type(self.plan).__name__}: {why}; allowed is {allowed}")

    def _check_compression(self) -> None:
        """What the server derives from the weights that were sent has to be right after rounding."""
        if self.rule.sends:
            why = f"{type(self.rule).__name__} derives from exact weights what the clients keep"
            raise InputError.of("compression", type(self.compression).__name__, "none", why)
        if self.compression.down and self.selection.together:
            selection, why = type(self.selection).__name__, "a client takes the components that it is sent for its rank"
            raise InputError.of("compression.down", "true", f"false with selection {selection}", why)
        if self.compression.down and self.importance.source == "change":
            importance, why = type(self.importance).__name__, "the change would have the rounding on the way down in it"
            raise InputError.of("compression.down", "true", f"false with importance {importance}", why)
        if self.compression.down and isinstance(self.grouping, Clustering) and self.grouping.features == "changes":
            why = "the changes would have the rounding on the way down in them"
            raise InputError.of("compression.down", "true", "false with grouping.features=changes", why)
        if self.compression.down and not isinstance(self.transfer, NoTransfer):
            why = "the clusters' changes would have the rounding on the way down in them"
            raise InputError.of("compression.down", "true", "false with a transfer between clusters", why)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """The local callbacks of one fit, in the order in which they read and change a gradient.

        The meter sees the loss's own gradient; frozen gradients are zeroed last.
        """
        plan = fit.payload.plan
        factor = [LearningRateFactor(fit)] if plan.lr_factor != 1 else []
        proximal = [Proximal(fit)] if plan.mu else []
        measured, corrected = self.importance.callbacks(fit), self.rule.callbacks(fit)
        return [*factor, *measured, *proximal, *corrected, *self.selection.callbacks(fit)]
