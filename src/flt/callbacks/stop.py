"""Ends a federation before its last round."""

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
    """When a run ends before its last round."""

    accuracy: float | None
    patience: int | None

    def __post_init__(self) -> None:
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise InputError.of("stop.accuracy", self.accuracy, "a number in (0, 1], or null")
        if self.patience is not None and self.patience < 1:
            raise InputError.of("stop.patience", self.patience, "an integer >= 1, or null")


class Stop(FedCallback):
    """Stops when the global model is good enough, or becomes no better any more.

    It goes by the history alone, so a resumed run stops at the same round, and one that has stopped is finished. It
    stands behind the callback that evaluates.

    Args:
        accuracy: The run ends after the round whose ``round/val_acc`` reaches this; None: no accuracy ends it.
        patience: The run ends after so many evaluations in a row of which none is better than all before them; by
            accuracy, by the loss where the module logs no accuracy; None: no patience ends it.
    """

    def __init__(self, accuracy: float | None = None, patience: int | None = None) -> None:
        StopConfig(accuracy, patience)  # refuses what has no meaning
        self.accuracy, self.patience = accuracy, patience

    def on_fit_start(self, federator: Federator) -> None:
        """Called when the federation begins, or goes on after a resume."""
        federator.should_stop = federator.should_stop or self.reason(federator.history) is not None

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        reason = self.reason([*federator.history, federator.metrics])
        if reason is not None and not federator.should_stop:
            _log.info("stopping after round %d of %d: %s", federator.round, federator.rounds, reason)
            federator.should_stop = True

    def on_fit_end(self, federator: Federator) -> None:
        """Called when the last round has ended."""
        if not _evaluated(federator.history) and (self.accuracy, self.patience) != (None, None):
            _log.warning("no global model was evaluated, so neither stop.accuracy nor stop.patience meant anything")

    def reason(self, history: History) -> str | None:
        """Why the run ends after these rounds; None where it goes on."""
        return self._reached(history) or self._stalled(history)

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
        return f"{name} {sign * values[best]:.4f} is the best for stop.patience={self.patience} evaluations"


def _evaluated(history: History) -> list[dict[str, float]]:
    """What the rounds with an evaluation of the global model measured."""
    found = [formatting.under(metrics, "round/") for metrics in history]
    return [figures for figures in found if set(figures) - {"clustering_acc"}]


def _watched(figures: Mapping[str, float]) -> tuple[str, int]:
    """What has to become better, and 1 where higher is better, else -1: accuracy, else the loss, else another score."""
    score, loss = formatting.score(figures), formatting.loss(figures)
    if loss is not None and (score is None or "acc" not in score):
        return loss, -1
    assert score is not None, "a round that was evaluated has one or the other"
    return score, 1


def _values(evaluated: Sequence[Mapping[str, float]], name: str, sign: int) -> list[float]:
    """The figures of one name, higher being better; what isn't a number is worst."""
    found = [sign * figures[name] for figures in evaluated if name in figures]
    return [-math.inf if math.isnan(value) else value for value in found]
