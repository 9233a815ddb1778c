"""Importance by leave-one-out: the loss that a model has without a component."""

from __future__ import annotations

import dataclasses

import torch
from lightning.pytorch import Callback

from flt.algorithm.importance.measured import Measured
from flt.client.fit import LocalCallback, LocalFit
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS

SOURCES = ("held_out", "train")


@dataclasses.dataclass(frozen=True)
class Ablation(Measured):
    """Increase of the loss if a component is left out, measured by the clients at the end of each fit (ours).

        score_i = L(w without component i) - L(w)

    w are the client's weights after its local training, and L is the mean loss on the client's own examples. A score
    below zero means that the model is better without the component. The clients measure all components that they hold,
    frozen ones too. The server averages the scores as it averages those of ``gradient``.

    The score is a yardstick for other scores, not a method for deployment: an evaluation for each component costs much
    more than a short fit. With n components in all layers, a fit is followed by n + 1 evaluations on ``examples``
    examples. The score is exact for one component. It says nothing about how components act together, and nothing about
    what further training of a component would gain.

    Attributes:
        data: ``held_out``: L is the loss on held-out examples of the client. A client without held-out examples uses
            its training examples. ``train``: L is the loss on training examples.
        examples: Largest number of examples on which a client measures. They are the same in each round.
        every: Number of rounds from one measurement to the next, beginning with the first. In the other
            rounds, the scores stay as they are.
        beta1: Share of the old score that is kept in each round. With 0, the last measurement alone counts.
    """

    data: str = "held_out"
    examples: int = 32
    every: int = 1
    beta1: float = 0.0

    def __post_init__(self) -> None:
        if self.data not in SOURCES:
            raise InputError.of("importance.data", self.data, SOURCES)
        for key in ("examples", "every"):
            if getattr(self, key) < 1:
                raise InputError.of(f"importance.{key}", getattr(self, key), "an integer >= 1")
        if not 0 <= self.beta1 < 1:
            raise InputError.of("importance.beta1", self.beta1, "a number in [0, 1)")

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callback that measures at the end of the fit, if the fit trains components and it is time."""
        due = fit.payload.round % self.every == 0 and set(LORA_FACTORS) & set(fit.payload.plan.train)
        return [LeftOut(fit, self.data, self.examples)] if due else []


class LeftOut(LocalCallback):
    """Adds to the update, for each held component, the increase of the loss if the component is left out.

    Args:
        fit: The local fit.
        data: ``held_out`` or ``train``: the examples on which the loss is measured.
        examples: Largest number of these examples.
    """

    def __init__(self, fit: LocalFit, data: str, examples: int) -> None:
        super().__init__(fit)
        self.data, self.examples = data, examples

    def report(self) -> None:
        """Called when the fit has ended; measures the loss without each held component."""
        assert self.fit.losses_without is not None, "the trainer of the fit sets it"
        whole, without = self.fit.losses_without(self.data, self.examples)
        for layer, ids in self.fit.payload.held.items():
            self.fit.scores[layer] = (ids, (without[layer] - whole).to(torch.float32))
