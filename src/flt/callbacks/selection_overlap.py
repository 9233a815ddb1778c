"""Measures how the set of components that a job trains changes from one fit to the next."""

from __future__ import annotations

from typing import Any, ClassVar

from flt.protocol.messages import Ids, JobId
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class SelectionOverlap(FedCallback):
    """Logs ``ranks/changed``, the number of components that a job trains now and did not train in its previous fit.

    The components are counted for each layer and job, and the mean over all layers and jobs of the round is logged.
    Jobs that take part for the first time are left out. The metric isn't logged if no job of the round has taken part
    before, or if all jobs train every active component.
    """

    state_key: ClassVar[str] = "Selected"
    state_types: ClassVar = {"last": dict[JobId, dict[str, Ids]]}

    def __init__(self) -> None:
        self.last: dict[JobId, dict[str, Ids]] = {}
        self._active: dict[str, Ids] = {}

    def on_round_start(self, federator: Federator) -> None:
        """Remembers the active components, because a schedule may remove some at the end of the round."""
        self._active = federator.state.active

    def on_round_end(self, federator: Federator) -> None:
        """Compares the components that each job trained in this round with the components of the job's previous fit."""
        kept = {update.job: update.kept for update in federator.updates}
        new = [
            len(set(ids) - set(self.last[job].get(layer, ())))
            for job, layers in kept.items()
            for layer, ids in layers.items()
            if job in self.last
        ]
        if new and any(layers != self._active for layers in kept.values()):
            federator.log({"ranks/changed": sum(new) / len(new)})
        self.last.update(kept)

    def state_dict(self) -> dict[str, Any]:
        """Returns the components that each job trained in its newest fit."""
        return {"last": dict(sorted(self.last.items()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the components that each job trained in its newest fit."""
        self.last = dict(state["last"])
