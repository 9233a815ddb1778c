"""Logs the combinations that a bandit over clusterings chooses."""

from __future__ import annotations

from flt.algorithm.grouping.bandit import BanditGrouping
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class BanditChoices(FedCallback):
    """Logs the combination that ``grouping=bandit`` has chosen in the round.

    - ``bandit/k``: number of clusters of the combination.
    - ``bandit/changes``: 1 if it clusters the changes of the round, 0 if it clusters weights.
    - ``bandit/transfer``: weight of its transfer.
    - ``bandit/reward``: mean reward of this combination in its earlier rounds, from the second of its rounds on.
    """

    def on_round_end(self, federator: Federator) -> None:
        """Logs the metrics, if the round has chosen a combination."""
        grouping, bandit = federator.server.recipe.grouping, federator.state.bandit
        assert isinstance(grouping, BanditGrouping), "the run has this callback only with a bandit"
        if not federator.updates:
            return
        place = int(bandit["latest"][0])
        k, kind, weight = grouping.arms[place]
        metrics = {"k": float(k), "changes": float(kind == "changes"), "transfer": weight}
        if (earlier := bandit["choices"][place] - 1) > 0:
            metrics["reward"] = bandit["rewards"][place] / earlier
        federator.log({f"bandit/{key}": value for key, value in metrics.items()})
