"""Measures how much the sets of trained pairs change."""

from __future__ import annotations

from typing import Any, ClassVar

from flt.protocol.messages import Ids, JobId
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class SelectionOverlap(FedCallback):
    """Leaves ``ranks/changed``: pairs that a job trains now and did not train when it last took part.

    It is the mean over the round's layers and jobs, without those that take part for the first time. There is none in
    the first round, nor where all jobs train every living pair: nothing is selected then.
    """

    state_key: ClassVar[str] = "Selected"

    def __init__(self) -> None:
        self.last: dict[JobId, dict[str, Ids]] = {}
        self._active: dict[str, Ids] = {}

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        self._active = federator.state.active  # at the end of the round a schedule has cut it

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        kept = {update.job: update.kept for update in federator.updates}
        new = [
            len(set(ids) - set(self.last[job][layer]))
            for job, layers in kept.items()
            for layer, ids in layers.items()
            if job in self.last
        ]
        if new and any(layers != self._active for layers in kept.values()):
            federator.log({"ranks/changed": sum(new) / len(new)})
        self.last.update(kept)

    def state_dict(self) -> dict[str, Any]:
        """What each job trained last."""
        return {"last": dict(sorted(self.last.items()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called before a resumed fit."""
        self.last = dict(state["last"])
