"""Faults and attacks that are injected into a run on purpose, to measure their effect.

The faults are drawn at random with the run's seed. Two runs with the same seed have the same faults.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.data.examples import Examples
from flt.data.joint import JointExamples
from flt.protocol.messages import JobId, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

_FAULTS, _HOSTILE = 4, 5  # numbers in the seeds that make these random streams differ from all others
LABEL_FLIP = "label_flip"
ATTACKS = ("sign_flip", "scale", "label_flip")


@dataclasses.dataclass
class FaultsConfig:
    """Settings of the injected faults. The section ``faults`` of conf/train.yaml explains each of them."""

    drop: float
    nan: float
    attack: str | None
    hostile: float
    scale: float

    def __post_init__(self) -> None:
        for key in ("drop", "nan", "hostile"):
            if not 0 <= getattr(self, key) <= 1:
                raise InputError.of(f"faults.{key}", getattr(self, key), "a number in [0, 1]")
        if self.attack is not None and self.attack not in ATTACKS:
            raise InputError.of("faults.attack", self.attack, [*ATTACKS, "null"])
        if not math.isfinite(self.scale):
            raise InputError.of("faults.scale", self.scale, "a finite number")


class Faults(FedCallback):
    """Drops updates, puts NaN into updates, and changes the updates of hostile clients.

    This object is one of the federator's ``transforms``. The federator passes all updates of a client to the object,
    after the local fits and before compression. A client is hostile in all rounds or in no round.

    Args:
        faults: Settings of the faults.
        seed: Seed of the run.
        clients: Ids of all clients.
    """

    def __init__(self, faults: FaultsConfig, seed: int, clients: Sequence[int]) -> None:
        self.faults, self.seed = faults, seed
        self.hostile = hostile(faults, seed, clients)
        self._federator: Federator | None = None

    def on_fit_start(self, federator: Federator) -> None:
        """Remembers the federator, whose state is needed to change updates."""
        self._federator = federator

    def __call__(self, updates: list[Update]) -> list[Update]:
        """Returns the updates of a client. Faults are added to some updates, and dropped updates are left out."""
        federator = self._federator
        assert federator is not None, "on_fit_start comes first"
        left = [update for update in updates if self._draw(federator, update.job, 0) >= self.faults.drop]
        return [self._changed(federator, update) for update in left]

    def _changed(self, federator: Federator, update: Update) -> Update:
        if update.job[0] in self.hostile and self.faults.attack != LABEL_FLIP:
            factor = -1.0 if self.faults.attack == "sign_flip" else self.faults.scale
            starts = _starts(federator, update)
            tensors = {name: start + factor * (update.tensors[name] - start) for name, start in starts.items()}
            update = dataclasses.replace(update, tensors=tensors)
        if update.tensors and self._draw(federator, update.job, 1) < self.faults.nan:
            name = min(update.tensors)
            broken = update.tensors[name].clone()
            broken.view(-1)[:1] = torch.nan
            update = dataclasses.replace(update, tensors={**update.tensors, name: broken})
        return update

    def _draw(self, federator: Federator, job: JobId, what: int) -> float:
        stream = [self.seed, federator.state.rounds, _FAULTS, federator.attempt, what, *job]
        return float(np.random.default_rng(stream).random())


def hostile(faults: FaultsConfig, seed: int, clients: Sequence[int]) -> frozenset[int]:
    """Returns the ids of the hostile clients, drawn at random; empty if no attack is configured.

    The share of hostile clients is ``faults.hostile``. Their number is rounded to the nearest integer.
    """
    if faults.attack is None:
        return frozenset()
    count = round(faults.hostile * len(clients))
    return frozenset(np.random.default_rng([seed, _HOSTILE]).choice(sorted(clients), count, replace=False).tolist())


def _starts(federator: Federator, update: Update) -> dict[str, Tensor]:
    """Returns name -> value that the job received before its fit, for each tensor of the update."""
    view = federator.server.view(federator.state)
    head = next(job.head for job in federator.cohort if job.id == update.job)
    layout = federator.server.layout
    places = [at for name in update.tensors for at in layout.server_names(name, head)]
    own = layout.joined({at: view.sent(update.job, at) for at in places}, head)
    return {name: layout.for_head(head).take(name, own[name], update.kept) for name in update.tensors}


def with_flipped_labels(clients: Sequence[ClientSpec], chosen: frozenset[int]) -> list[ClientSpec]:
    """Returns all clients; the chosen ones get wrong training labels.

    With C classes, label c becomes C - 1 - c. Held-out examples keep their right labels.

    Args:
        clients: All clients.
        chosen: Ids of the clients that get wrong labels.

    Raises:
        InputError: The number of classes isn't known, because a chosen client's data have no label counts.
    """
    doubled: dict[tuple[int, int], Dataset] = {}

    def flipped(job: JobData) -> JobData:
        classes, data = len(job.label_counts), cast(Sized, job.dataset)
        if not classes:
            raise InputError.of("faults.attack", LABEL_FLIP, "sign_flip, scale", "the classes of the data aren't known")
        key = id(data), classes
        doubled[key] = doubled.get(key) or _doubled(job.dataset, classes)
        return job.but(dataset=doubled[key], train=job.train + len(data), label_counts=_flipped_counts(job))

    return [
        dataclasses.replace(client, data=tuple(map(flipped, client.data))) if client.id in chosen else client
        for client in clients
    ]


def _flipped_counts(job: JobData) -> tuple[int, ...]:
    """Returns the label counts of a job with wrong labels. A label stays among the classes of its task."""
    counts = list(job.label_counts)
    for own in {task.classes for task in job.parts} or {range(len(counts))}:
        counts[own.start : own.stop] = counts[own.start : own.stop][::-1]
    return tuple(counts)


def _doubled(dataset: Dataset, classes: int) -> Dataset:
    """Returns the examples followed by the same examples with wrong labels.

    Training uses the second half, and evaluation uses the first half.
    """
    if isinstance(dataset, JointExamples):
        wrong = [part.view(np.arange(len(part)), part.labels.max() - part.labels) for part in dataset.parts]
        return JointExamples([*dataset.parts, *wrong], dataset.tasks * 2, dataset.outputs * 2)
    if isinstance(dataset, Examples):
        labels = np.concatenate([dataset.labels, classes - 1 - dataset.labels])
        return dataset.view(np.tile(np.arange(len(dataset)), 2), labels)
    return _Doubled(dataset, classes)


class _Doubled(Dataset):
    """A user's data set, followed by a copy of the data set with wrong labels.

    An item is (input, label) or a dict with the key ``labels`` or ``label``.
    """

    def __init__(self, dataset: Any, classes: int) -> None:
        self.dataset, self.classes = dataset, classes

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        size = len(self.dataset)
        item = self.dataset[i % size]
        if i < size:
            return item
        if not isinstance(item, Mapping):
            first, label = item
            return first, self.classes - 1 - label
        key = "labels" if "labels" in item else "label"
        return {**item, key: self.classes - 1 - item[key]}
