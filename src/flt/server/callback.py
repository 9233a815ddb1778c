"""The base of the federation's callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from flt.protocol.failure import Failure
    from flt.protocol.messages import Payload, Update
    from flt.server.federator import Federator


class FedCallback:
    """Hooks of a federation; none returns a value.

    A callback reads the federator (``state``, ``round``, ``cohort``, ``updates``) and leaves figures with
    ``federator.log``. What it needs after a resume goes through ``state_dict`` and ``load_state_dict``.
    """

    state_key: ClassVar[str] = ""
    """The name under which checkpoints keep the state; empty: the name of the class."""

    def on_fit_start(self, federator: Federator) -> None:
        """Called when the federation begins, or goes on after a resume."""

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when a job is sent its payload."""

    def on_job_end(self, federator: Federator, update: Update) -> None:
        """Called when a job's fit has ended, with its update before the client's transforms and compression."""

    def on_update(self, federator: Federator, update: Update) -> None:
        """Called when a client sends an update, compressed as it is sent."""

    def on_failures(self, federator: Federator, failures: list[Failure]) -> None:
        """Called when a round's jobs have ended and some of them failed."""

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated: ``federator.state`` is the new one."""

    def on_evaluation(self, federator: Federator, done: int, batches: int) -> None:
        """Called when a batch of a global or distributed model's evaluation has ended: ``done`` of ``batches``."""

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Called when all callbacks have left their figures of the round."""

    def on_fit_end(self, federator: Federator) -> None:
        """Called when the last round has ended."""

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Called when the federation is interrupted."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: numbers, strings, tensors, dicts and tuples of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called before a resumed fit."""
