"""Choice of the clustering and of the transfer by a bandit that is rewarded by the gain on held-out examples (ours)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flt.algorithm.grouping.base import Clustering, Groups
from flt.algorithm.grouping.features import KINDS
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.transfer import CosineTransfer
from flt.algorithm.view import View
from flt.core import formatting
from flt.core.errors import InputError
from flt.protocol.messages import JobId, Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

RECEIVED = "distributed/"
"""Prefix of an update's metrics of the model that the job received, on the job's own held-out examples."""


@dataclasses.dataclass(frozen=True)
class BanditGrouping(Clustering):
    """K-means whose number of clusters, features and transfer are chosen in each round by a bandit (our addition).

    An arm is a combination of ``k``, ``kinds`` and ``weights``. Arms are chosen by UCB1 (Auer et al., 2002)::

        L_t    = mean over the jobs of round t of the loss of the received model on the job's held-out examples
        r_t    = (L_t - L_t+1) / L_t, cut to [-1, 1]: reward of the arm a_t, known in round t + 1
        a_t    = the first arm that has never been chosen, else the arm with the largest
                 mean reward of the arm + explore * sqrt(2 ln(choices so far) / choices of this arm)

    The jobs send L_t anyway, as a metric, so that the choice costs no bytes. No random number is drawn. A round whose
    jobs report no loss rewards no arm. The counts, the sums of rewards, the latest arm and its loss are a part of the
    server's state.

    Attributes:
        ks: Numbers of clusters.
        kinds: Features: ``weights`` or ``changes``, as in ``grouping.features``.
        weights: Weights of ``transfer=cosine``; 0 is no transfer. The recipe's own part ``transfer`` must be ``none``.
        explore: Factor of the term that favours arms with few choices.
    """

    ks: tuple[int, ...] = dataclasses.field(default=(2, 3), kw_only=True)
    kinds: tuple[str, ...] = dataclasses.field(default=("weights", "changes"), kw_only=True)
    weights: tuple[float, ...] = dataclasses.field(default=(0.0, 0.1), kw_only=True)
    explore: float = dataclasses.field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("ks", "kinds", "weights"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise InputError.of(f"grouping.{key}", list(getattr(self, key)), "each value once")
        if not self.ks or any(k < 2 for k in self.ks):
            raise InputError.of("grouping.ks", list(self.ks), "integers >= 2")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise InputError.of("grouping.kinds", list(self.kinds), KINDS)
        if not self.weights or not all(0 <= weight <= 1 for weight in self.weights):
            raise InputError.of("grouping.weights", list(self.weights), "numbers in [0, 1]")
        if not 0 <= self.explore < math.inf:
            raise InputError.of("grouping.explore", self.explore, "a number >= 0")
        if self.memory:
            raise InputError.of("grouping.memory", "true", "false with grouping=bandit, whose features change")

    @property
    def reads_held_out(self) -> bool:
        """Always True, since the losses on held-out examples reward the arms."""
        return True

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a transfer, since the bandit chooses one in each round."""
        super().check_recipe(recipe)
        if recipe.transfer.mixes:
            raise self.clash(recipe.transfer, "the bandit chooses the transfer, from grouping.weights", "none")

    @property
    def arms(self) -> list[tuple[int, str, float]]:
        """All combinations (k, features, weight of the transfer), in order."""
        return list(itertools.product(self.ks, self.kinds, self.weights))

    @property
    def reads_changes(self) -> bool:
        """True if an arm clusters changes."""
        return "changes" in self.kinds

    def labels(self, features: np.ndarray, jobs: Sequence[JobId], seed: int) -> np.ndarray:
        """Never called: the clustering of the chosen arm clusters the updates."""
        raise AssertionError("the arm's own clustering is called")

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Chooses an arm and clusters the updates by it."""
        if not updates:
            return Groups({})
        history = rewarded(view.state.bandit, updates, len(self.arms))
        arm = self.chosen(history)
        found = self._clustering(arm)(view, updates)
        counts = [float(n + (place == arm)) for place, n in enumerate(history["choices"])]
        bandit = {**history, "choices": tuple(counts), "latest": (float(arm), *mean_loss(updates))}
        return dataclasses.replace(found, bandit=bandit, transfer=CosineTransfer(self.arms[arm][2]))

    def describe(self, view: View, updates: Sequence[Update]) -> np.ndarray:
        """Returns the features of the updates (n, d) that the round's arm compares."""
        arm = self.chosen(rewarded(view.state.bandit, updates, len(self.arms)))
        return self._clustering(arm).describe(view, updates)

    def chosen(self, history: dict[str, tuple[float, ...]]) -> int:
        """Returns the place of the arm that UCB1 chooses.

        Args:
            history: ``choices``: how often each arm was chosen. ``rewards``: sum of its rewards.
        """
        choices, rewards = history["choices"], history["rewards"]
        if 0 in choices:
            return choices.index(0)
        total = math.log(sum(choices))
        scores = [
            reward / n + self.explore * math.sqrt(2 * total / n) for reward, n in zip(rewards, choices, strict=True)
        ]
        return scores.index(max(scores))

    def _clustering(self, arm: int) -> KMeansGrouping:
        k, kind, _ = self.arms[arm]
        return KMeansGrouping(k, features=kind, tensors=self.tensors, newcomers=self.newcomers)


def rewarded(
    before: dict[str, tuple[float, ...]], updates: Sequence[Update], arms: int
) -> dict[str, tuple[float, ...]]:
    """Returns the choices and rewards of the arms after the latest arm was rewarded by the losses of these updates."""
    choices, rewards = before.get("choices", (0.0,) * arms), list(before.get("rewards", (0.0,) * arms))
    latest, now = before.get("latest", ()), mean_loss(updates)
    if len(latest) == 2 and now and latest[1] > 0:
        rewards[int(latest[0])] += min(1.0, max(-1.0, (latest[1] - now[0]) / latest[1]))
    return {"choices": choices, "rewards": tuple(rewards)}


def mean_loss(updates: Sequence[Update]) -> tuple[float, ...]:
    """Returns the mean loss of the received models, or nothing if no job reports one that is finite."""
    received = [formatting.between(update.metrics, RECEIVED) for update in updates]
    losses = [metrics[name] for metrics in received if (name := formatting.loss(metrics)) is not None]
    finite = [loss for loss in losses if math.isfinite(loss)]
    return (float(np.mean(finite)),) if finite else ()
