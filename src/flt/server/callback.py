"""Base class of the federation's callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from flt.protocol.failure import Failure
    from flt.protocol.messages import Payload, Update
    from flt.server.federator import Federator


class FedCallback:
    """Hooks of a federation; only ``state_dict`` returns a value.

    A callback reads the federator (``state``, ``round``, ``cohort``, ``updates``) and reports metrics by
    ``federator.log``. ``state_dict`` and ``load_state_dict`` carry its own state over a resume.
    """

    state_key: ClassVar[str] = ""
    """Key of the callback's state in checkpoints; empty: the name of the class."""

    def on_fit_start(self, federator: Federator) -> None:
        """Called when the federation begins or resumes."""

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when a payload is sent to its job."""

    def on_job_end(self, federator: Federator, update: Update) -> None:
        """Called when the fit of a job has ended, with the update before the client's transforms and compression."""

    def on_update(self, federator: Federator, update: Update) -> None:
        """Called when a client sends an update, with the compressed update."""

    def on_failures(self, federator: Federator, failures: list[Failure]) -> None:
        """Called when all jobs of a round have ended and some of them failed."""

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated; ``federator.state`` is the new state."""

    def on_evaluation(self, federator: Federator, done: int, batches: int) -> None:
        """Called after each batch when a global or received model is evaluated; ``done`` of ``batches`` have ended."""

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Called when all callbacks have logged their metrics of the round."""

    def on_fit_end(self, federator: Federator) -> None:
        """Called when the last round has ended."""

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Called when an exception ends the federation, such as an interrupt."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resume needs: numbers, strings and tensors, and dicts and tuples of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state; called before a resumed fit."""
