"""Base of HAFL's selections (arXiv 2411.06581), which chooses the top components of a job.

The top components have the highest scores or the lowest ids, or are random.
"""

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
    """Base of the selections by top components. A job of rank r_k has r_k top components per layer.

    Attributes:
        by: ``score``: the components with the highest scores are the top ones. While all scores are equal, each
            job gets random components instead. The jobs of a cohort then together train as many components as their
            ranks allow (our reconstruction). ``first``: the components with the lowest ids, as in HetLoRA. ``random``:
            a new random set in each round.
        explore: Share, in [0, 1), of a job's components that is drawn at random. Random components replace the top
            components with the lowest scores (our reconstruction). Without exploration, the sets hardly change after
            round 1, because a component that no client has measured keeps the score 0.
        scope: ``layer``: r_k components of each layer. ``global``: r_k * L components of all L layers together, so that
            a layer may get none. Scores of different layers are then compared directly, and random sets are drawn from
            the components of all layers (our reconstruction).
        scores: ``server``: the scores of the job's group. ``client``: the scores that the job itself has measured in
            its fits. For components that it never measured, the scores of its group are used (our reconstruction).
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
        """True if the selection uses the scores that the job itself has measured."""
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
        """Returns a job's top components in one pool: the active components of one layer, or of all layers.

        Args:
            view: View of the round.
            job: The job.
            cohort: All jobs of the round.
            number: Number of the pool, which distinguishes the random numbers of the pools.
            pool: Active components of the pool.
            scores: Scores for this job, by layer.
        """
        layers = 1 if self.scope == "layer" else len(view.state.active)
        count = min(layers * job.rank, len(pool))
        if self.by == "first":
            return pool[:count]
        known = {(name, component): scores[name][component] for name, component in pool}
        if self.by == "random" or len(set(known.values())) < 2:
            return deal(pool, job, cohort, view.generator(number), layers)
        # The sort is stable: of equal scores, the first layer and the lowest id come first.
        ranking = sorted(pool, key=known.__getitem__, reverse=True)
        return explored(ranking, count, self.explore, view.generator(number, *job.id))

    def _scores(self, view: View, job: Job) -> dict[str, Tensor]:
        scores = view.state.groups[view.state.group_of(job.id)].scores
        own = view.state.scores.get(job.id, {}) if self.uses_own_scores else {}
        return {**scores, **{name: torch.where(mine.isnan(), scores[name], mine) for name, mine in own.items()}}
