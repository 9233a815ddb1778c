"""Base class of the federation's callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from flt.protocol.failure import Failure
    from flt.protocol.messages import Payload, Update
    from flt.server.federator import Federator


class FedCallback:
    """Base class of callbacks, with the hooks that the federator calls. No ``on_*`` hook returns a value.

    A callback reads the federator's attributes (``state``, ``round``, ``cohort``, ``updates``) and reports metrics with
    ``federator.log``. A callback with a state of its own saves and restores this state with ``state_dict`` and
    ``load_state_dict``, so that a resumed run continues with this state.
    """

    state_key: ClassVar[str] = ""
    """Key of the callback's state in checkpoints. If empty, the name of the class is the key."""
    state_types: ClassVar[Mapping[str, Any]] = {}
    """Name in ``state_dict`` -> annotation, such as ``dict[str, float]``. A checkpoint with another type is refused."""

    def on_fit_start(self, federator: Federator) -> None:
        """Called when the federation begins or resumes."""

    def on_round_start(self, federator: Federator) -> None:
        """Called when the cohort of a round has been drawn; called again for each retry of the round."""

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when the server sends a payload to a job."""

    def on_job_end(self, federator: Federator, update: Update) -> None:
        """Called when the fit of a job has ended; ``update`` isn't transformed or compressed yet."""

    def on_update(self, federator: Federator, update: Update) -> None:
        """Called when a client sends an update; ``update`` is transformed and compressed."""

    def on_failures(self, federator: Federator, failures: list[Failure]) -> None:
        """Called when all jobs of the cohort have ended, if some of them failed."""

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated; ``federator.state`` is the new state."""

    def on_evaluation(self, federator: Federator, done: int, batches: int) -> None:
        """Called after each batch when a global or received model is evaluated; ``done`` counts the batches so far."""

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Called at the end of a round, after ``on_round_end`` of all callbacks; ``metrics`` is complete."""

    def on_fit_end(self, federator: Federator) -> None:
        """Called when the last round has ended."""

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Called when an exception ends the federation, such as KeyboardInterrupt after Ctrl-C."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state to save in checkpoints: numbers, strings and tensors, or dicts and tuples of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state that ``state_dict`` returned; called before a resumed run continues."""
