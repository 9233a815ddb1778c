"""Top components of a job by score, by id or at random: the base of HAFL's selections (arXiv 2411.06581)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flt.algorithm.base import SelectionPart
from flt.algorithm.selection.sets import deal, explored
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.job import Job
from flt.protocol.layout import LORA_FACTORS
from flt.protocol.messages import Ids

ComponentIds = dict[str, Ids]
"""Component ids by layer."""
Component = tuple[str, int]
"""Layer and component id."""
Scores = dict[str, list[float]]
"""Score of each component at the initial rank, by layer."""

ORDERS = ("score", "first", "random")
SCOPES = ("layer", "global")
SOURCES = ("server", "client")


@dataclasses.dataclass(frozen=True)
class Top(SelectionPart):
    """Base of the selections by top components: the top r_k of each layer, or the top r_k * L of all L layers.

    Attributes:
        by: ``score``: the components with the highest importance. While all scores are equal, the sets are random and
            spread over the cohort, so that clients together train as many components as their ranks allow (our
            reconstruction). ``first``: the lowest ids, as in HetLoRA. ``random``: new random sets in each round.
        explore: Share, in [0, 1), of a job's components that are drawn at random from outside its top and replace the
            lowest ones of its top (our reconstruction). A component that no client has measured keeps the score 0, so
            without exploration the sets hardly change after round 1.
        scope: ``layer``: r_k components of each layer. ``global``: r_k * L components of any layers, so a layer may get
            none; scores of different layers are compared directly, and random sets are dealt from all components (our
            reconstruction).
        scores: ``server``: the scores of the job's group. ``client``: the scores that the job itself has measured over
            its fits, and its group's scores for components that it never measured (our reconstruction).
    """

    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    by: str = "score"
    explore: float = 0.0
    scope: str = "layer"
    scores: str = "server"

    def __post_init__(self) -> None:
        for key, allowed in (("by", ORDERS), ("scope", SCOPES), ("scores", SOURCES)):
            if getattr(self, key) not in allowed:
                raise InputError.of(f"selection.{key}", getattr(self, key), allowed)
        if not 0 <= self.explore < 1:
            raise InputError.of("selection.explore", self.explore, "a number in [0, 1)")
        if self.explore and self.by != "score":
            raise InputError.of("selection.explore", self.explore, f"0 with selection.by={self.by}")
        if self.uses_own_scores and self.by != "score":
            raise InputError.of("selection.scores", self.scores, f"server with selection.by={self.by}")
        if self.scope == "global" and self.by == "first":
            why = "ids have no order over layers"
            raise InputError.of("selection.scope", self.scope, "layer with selection.by=first", why)

    @property
    def uses_own_scores(self) -> bool:
        """True if a job's own scores decide its components."""
        return self.scores == "client"

    def top(self, view: View, job: Job, cohort: Sequence[Job]) -> ComponentIds:
        """Returns the ids of a job's top components by layer."""
        layers = [[(name, component) for component in ids] for name, ids in view.state.active.items()]
        pools = layers if self.scope == "layer" else [[component for components in layers for component in components]]
        scores = {name: known.tolist() for name, known in self._scores(view, job).items()}
        shares = [self._share(view, job, cohort, number, pool, scores) for number, pool in enumerate(pools)]
        chosen = {component for share in shares for component in share}
        return {name: tuple(i for i in ids if (name, i) in chosen) for name, ids in view.state.active.items()}

    def _share(
        self, view: View, job: Job, cohort: Sequence[Job], number: int, pool: Sequence[Component], scores: Scores
    ) -> Sequence[Component]:
        """Returns a job's components from one pool: the active components of one layer, or of all layers."""
        layers = 1 if self.scope == "layer" else len(view.state.active)
        count = min(layers * job.rank, len(pool))
        if self.by == "first":
            return pool[:count]
        known = {(name, component): scores[name][component] for name, component in pool}
        if self.by == "random" or len(set(known.values())) < 2:
            return deal(pool, job, cohort, view.generator(number), layers)
        ranking = sorted(pool, key=known.__getitem__, reverse=True)  # stable: ties go to the first layer and id
        return explored(ranking, count, self.explore, view.generator(number, *job.id))

    def _scores(self, view: View, job: Job) -> dict[str, Tensor]:
        scores = view.state.groups[view.state.group_of(job.id)].scores
        own = view.state.scores.get(job.id, {}) if self.uses_own_scores else {}
        return {**scores, **{name: torch.where(mine.isnan(), scores[name], mine) for name, mine in own.items()}}
