"""Reports and counts failed jobs."""

from __future__ import annotations

import logging

from flt.protocol.failure import Failure
from flt.server.callback import FedCallback
from flt.server.federator import Federator

_log = logging.getLogger(__name__)


class Failures(FedCallback):
    """Logs the failures of each round.

    ``faults/failed`` is the number of failed jobs, summed over all attempts at the round. ``faults/retries`` is the
    number of times that the round was repeated. Under the strict failure policy, the first failure ends the run, and
    these metrics aren't logged.
    """

    def __init__(self) -> None:
        self.failed = 0

    def on_round_start(self, federator: Federator) -> None:
        """Resets the count of failures at the first attempt at a round."""
        if not federator.attempt:
            self.failed = 0

    def on_failures(self, federator: Federator, failures: list[Failure]) -> None:
        """Counts the failed jobs and warns about each of them."""
        self.failed += len(failures)
        for failure in failures:
            _log.warning("round %d has no update from %s", federator.round, failure)

    def on_round_end(self, federator: Federator) -> None:
        """Logs the numbers of failures and retries."""
        if not federator.failure_policy.strict:
            federator.log({"faults/failed": self.failed, "faults/retries": federator.attempt})
