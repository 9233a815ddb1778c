"""Measures how much the changes that the clients of a round send differ in direction."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from flt.algorithm.rule.base import Totals, add
from flt.algorithm.view import View
from flt.protocol.messages import Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

KIND, NORM = "divergence", ""
"""Keys of the sums: (KIND + part, name of a tensor), and (KIND + part, NORM) for the lengths of the changes."""
WHOLE, ADAPTER, HEAD = "", "_adapter", "_head"


class Divergence(FedCallback):
    """Logs ``clients/divergence`` and ``clients/drift``, which describe the changes that clients send (our measures).

    d_i is the change of job i in this round: all numbers that it sends minus the numbers that it received, as one
    vector. Numbers that it doesn't send count as 0. For n jobs with d_i not 0:

        clients/divergence = 1 - mean over all pairs i != j of  d_i d_j / (|d_i| |d_j|)
        clients/drift      = mean over i of  |d_i|

    The divergence is 0 if all changes have the same direction, 1 if they are orthogonal on average, and at most
    1 + 1 / (n - 1). ``clients/divergence_adapter`` and ``clients/divergence_head`` are the same measure for the head
    alone and for everything else. They are logged if clients send both. With fewer than two changes, only the drift
    is logged.

    With s, the sum of all d_i / |d_i|, the mean over the pairs is (s s - n) / (n (n - 1)). Only sums over the clients
    are therefore needed. A recipe that streams adds them up like its own sums, and they are exact: neither the order of
    the updates nor the number of processes changes a bit of the metrics. Two sums of the size of an update are kept.
    """

    def __init__(self) -> None:
        self._view: View | None = None

    def on_fit_start(self, federator: Federator) -> None:
        """Lets the server add up the changes."""
        if include not in federator.server.further_sums:
            federator.server.further_sums.append(include)

    def on_round_start(self, federator: Federator) -> None:
        """Keeps the state that the round begins with, because the changes are measured from it."""
        self._view = federator.server.view(federator.state)

    def on_round_end(self, federator: Federator) -> None:
        """Logs the metrics of the round."""
        assert self._view is not None, "set at the start of the round"
        totals: Totals = {}
        if federator.sums is not None:
            totals = federator.sums.totals
        else:
            for update in federator.updates:
                include(self._view, update, totals)
        federator.log(metrics_of(totals))


def include(view: View, update: Update, totals: Totals) -> None:
    """Adds the length of an update's change and its direction, a vector of length 1, to the sums.

    Args:
        view: View of the round in which the update was sent.
        update: Update of a job, with the server's tensor names.
        totals: Sums of the round.
    """
    received = view.untrained_update(update).tensors
    changes = {name: tensor.double() - received[name].double() for name, tensor in sorted(update.tensors.items())}
    for part, names in _parts(view, changes).items():
        norm = _norm(changes[name] for name in names)
        if norm == 0:
            continue
        add(totals, (KIND + part, NORM), torch.tensor(norm, dtype=torch.float64))
        for name in names:
            nothing = torch.zeros(view.layout.entries[name].shape, dtype=torch.float64)
            add(totals, (KIND + part, name), view.layout.put(name, nothing, update.kept, changes[name] / norm))


def metrics_of(totals: Totals) -> dict[str, float]:
    """Returns the metrics, computed from the sums over a round. Returns {} if no job sent a change."""
    found = {}
    for part in (WHOLE, ADAPTER, HEAD):
        if (KIND + part, NORM) not in totals:
            continue
        norms = totals[KIND + part, NORM]
        n = norms.count
        if part == WHOLE:
            found["clients/drift"] = float(norms.value()) / n
        if n > 1:
            sums = [totals[key].value() for key in sorted(totals) if key[0] == KIND + part and key[1] != NORM]
            cosine = (_norm(sums) ** 2 - n) / (n * (n - 1))
            found[f"clients/divergence{part}"] = 1 - cosine
    return found


def _parts(view: View, names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names of the whole update and, if it has both, those of its head and those of everything else."""
    every = list(names)
    head = [name for name in every if view.layout.entries[name].role == "head"]
    rest = [name for name in every if name not in set(head)]
    return {WHOLE: every, ADAPTER: rest, HEAD: head} if head and rest else {WHOLE: every}


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
