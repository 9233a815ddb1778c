"""Early stopping, which ends a federation before its last round."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

from flt.core import formatting
from flt.core.errors import InputError
from flt.server.callback import FedCallback
from flt.server.federator import Federator

_log = logging.getLogger(__name__)
History = Sequence[Mapping[str, float]]


@dataclasses.dataclass
class StopConfig:
    """Settings of early stopping. :class:`Stop` explains them."""

    accuracy: float | None
    patience: int | None
    simulated_hours: float | None = None

    def __post_init__(self) -> None:
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise InputError.of("stop.accuracy", self.accuracy, "a number in (0, 1], or null")
        if self.patience is not None and self.patience < 1:
            raise InputError.of("stop.patience", self.patience, "an integer >= 1, or null")
        if self.simulated_hours is not None and not 0 < self.simulated_hours < math.inf:
            raise InputError.of("stop.simulated_hours", self.simulated_hours, "a number > 0, or null")


class Stop(FedCallback):
    """Stops a federation when the global model is good enough or no longer improves.

    The decision depends only on the metrics of the rounds. A resumed run therefore stops after the same round as an
    uninterrupted run. A stopped run counts as finished. In the list of callbacks, this one must come after
    ``Evaluate`` and ``Fleet``.

    Args:
        accuracy: The run ends after the round whose ``round/val_acc`` reaches this value. If None, this rule is off.
        patience: The run ends after this many evaluations in a row without a new best accuracy. If the module logs no
            accuracy, the loss is compared instead. If None, this rule is off.
        simulated_hours: The run ends after the round in which ``time/simulated_hours`` reaches this value. If None,
            this rule is off.
    """

    def __init__(
        self, accuracy: float | None = None, patience: int | None = None, simulated_hours: float | None = None
    ) -> None:
        StopConfig(accuracy, patience, simulated_hours)  # checks the values
        self.accuracy, self.patience, self.simulated_hours = accuracy, patience, simulated_hours

    def on_fit_start(self, federator: Federator) -> None:
        """Stops a resumed run at once if one of the rules already applies to the finished rounds."""
        federator.should_stop = federator.should_stop or self.reason(federator.history) is not None

    def on_round_end(self, federator: Federator) -> None:
        """Stops after this round if one of the rules applies."""
        reason = self.reason([*federator.history, federator.metrics])
        if reason is not None and not federator.should_stop:
            _log.info("stopping after round %d of %d: %s", federator.round, federator.rounds, reason)
            federator.should_stop = True

    def on_fit_end(self, federator: Federator) -> None:
        """Warns if a rule is on but could never apply, because no global model was evaluated."""
        if not _evaluated(federator.history) and (self.accuracy, self.patience) != (None, None):
            _log.warning("stop.accuracy and stop.patience had no effect, since no global model was evaluated")

    def reason(self, history: History) -> str | None:
        """Returns the reason to end the run after these rounds, or None if the run continues."""
        return self._reached(history) or self._stalled(history) or self._spent(history)

    def _spent(self, history: History) -> str | None:
        hours = history[-1].get("time/simulated_hours", 0.0) if history else 0.0
        if self.simulated_hours is None or hours < self.simulated_hours:
            return None
        return f"{hours:.4g} simulated hours reach stop.simulated_hours={self.simulated_hours}"

    def _reached(self, history: History) -> str | None:
        evaluated = _evaluated(history)
        name = formatting.accuracy(evaluated[-1]) if evaluated else None
        if self.accuracy is None or not evaluated:
            return None
        if name is None:
            known = ", ".join(evaluated[-1])
            raise InputError.of("stop.accuracy", self.accuracy, "null", f"the module logs {known} and no accuracy")
        best = max(_values(evaluated, name, 1))
        return f"{name} {best:.4f} reaches stop.accuracy={self.accuracy}" if best >= self.accuracy else None

    def _stalled(self, history: History) -> str | None:
        evaluated = _evaluated(history)
        if self.patience is None or not evaluated:
            return None
        name, sign = _watched(evaluated[-1])
        values = _values(evaluated, name, sign)
        best = values.index(max(values))
        since = len(values) - 1 - best
        if since < self.patience:
            return None
        return f"no {name} better than {sign * values[best]:.4f} in stop.patience={self.patience} evaluations"


def _evaluated(history: History) -> list[dict[str, float]]:
    """Returns the metrics of the global model for each round in which it was evaluated."""
    rounds = [formatting.between(metrics, "round/") for metrics in history]
    return [figures for figures in rounds if set(figures) - {"clustering_acc"}]


def _watched(figures: Mapping[str, float]) -> tuple[str, int]:
    """Returns the name of the metric to watch, and its sign. The sign is 1 if higher is better, else -1.

    The metric is the accuracy if there is one, else the loss if there is one, else another score.
    """
    score, loss = formatting.score(figures), formatting.loss(figures)
    if loss is not None and (score is None or "acc" not in score):
        return loss, -1
    assert score is not None, "a round that was evaluated has one or the other"
    return score, 1


def _values(evaluated: Sequence[Mapping[str, float]], name: str, sign: int) -> list[float]:
    """Returns the values of one metric times ``sign``, so that higher is better; NaN becomes the worst value."""
    values = [sign * figures[name] for figures in evaluated if name in figures]
    return [-math.inf if math.isnan(value) else value for value in values]
