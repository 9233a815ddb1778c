"""Says which jobs failed, and counts them."""

from __future__ import annotations

import logging

from flt.protocol.failure import Failure
from flt.server.callback import FedCallback
from flt.server.federator import Federator

_log = logging.getLogger(__name__)


class Failures(FedCallback):
    """Leaves ``faults/failed``, jobs without an update in all attempts at a round, and ``faults/retries``.

    Only where a round may go on without some: else a failure ends the run.
    """

    def __init__(self) -> None:
        self.failed = 0

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        if not federator.attempt:
            self.failed = 0

    def on_failures(self, federator: Federator, failures: list[Failure]) -> None:
        """Called when a round's jobs have ended and some of them failed."""
        self.failed += len(failures)
        for failure in failures:
            _log.warning("round %d lacks %s", federator.round, failure)

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        if not federator.failure_policy.strict:
            federator.log({"faults/failed": self.failed, "faults/retries": federator.attempt})
