"""Small modules and federations that train in a fraction of a second."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flt.algorithm.plan import AdapterPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.client.settings import LocalSettings
from flt.client.trainer import LocalTrainer
from flt.data.clients import ClientSpec, JobData
from flt.engines.serial import SerialEngine
from flt.models.adapters.lora import LoraSettings, attach
from flt.protocol.layout import Layout
from flt.protocol.messages import Plan, Update
from flt.server.aggregation import ServerAggregation
from flt.server.callback import FedCallback
from flt.server.client_sampling import FixedSize
from flt.server.federator import Federator

FEATURES, CLASSES = 6, 3


class Toy(pl.LightningModule):
    """Two linear layers that take LoRA, and a head."""

    def __init__(self, optimizer: str = "adamw", lr: float = 1e-2, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.fc1, self.fc2, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, 10), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc2(torch.relu(self.fc1(x)))))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind: Any = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        return kind(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Planned(AdapterPlan):
    """A plan that a function makes: finished rounds -> plan."""

    make: Callable[[int], Plan] = Plan

    def __call__(self, round: int) -> Plan:
        return self.make(round)


class Sent(FedCallback):
    """Keeps what the clients sent in the last round, as it was sent: a federation that streams doesn't."""

    def __init__(self) -> None:
        self.updates: list[Update] = []

    def on_round_start(self, federator: Federator) -> None:
        self.updates = []

    def on_update(self, federator: Federator, update: Update) -> None:
        self.updates.append(update)


def updates_of(federator: Federator) -> list[Update]:
    """What the clients of a toy federation sent in its last round."""
    return next(callback for callback in federator.callbacks if isinstance(callback, Sent)).updates


def toy_data(examples: int = 120, seed: int = 0, task: int = 0, classes: int = CLASSES) -> TensorDataset:
    """Linearly separable, up to the seed; other tasks have other labels for the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, FEATURES, generator=generator)
    truth = torch.randn(FEATURES, classes, generator=torch.Generator().manual_seed(100 + task))
    return TensorDataset(x, (x @ truth).argmax(-1))


def toy_module(rank: int = 4, seed: int = 0, **settings: Any) -> tuple[Toy, Layout]:
    """A toy with LoRA on it: the same bits for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Toy(**settings)
    return module, attach(module, LoraSettings(rank=rank, alpha=2.0 * rank), seed)


def toy_clients(clients: int = 3, jobs: int = 1, ranks: Sequence[int] | None = None) -> dict[int, ClientSpec]:
    """Clients of unequal size; a client's jobs have tasks of their own."""
    sets = [toy_data(clients * 30, task=task) for task in range(jobs)]
    made = {}
    for client in range(clients):
        start = client * 30
        train, held_out = np.arange(start, start + 12 + 4 * client), np.arange(start + 25, start + 30)
        data = tuple(JobData(sets[task], train, held_out, f"task{task}") for task in range(jobs))
        made[client] = ClientSpec(client, data, ranks[client % len(ranks)] if ranks else None)
    return made


def toy_federator(
    recipe: Recipe | None = None,
    clients: dict[int, ClientSpec] | None = None,
    *,
    rounds: int = 1,
    cohort: int | None = None,
    rank: int = 4,
    seed: int = 0,
    steps: int = 3,
    clip: float | None = None,
    callbacks: Sequence[FedCallback] = (),
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    **module: Any,
) -> Federator:
    """A federation of toys, ready to ``fit``."""
    recipe, clients = recipe or Recipe(Mean()), clients or toy_clients()
    toy, layout = toy_module(rank, **module)
    weights = {name: parameter.detach() for name, parameter in toy.named_parameters()}
    names = {*(layer.base for layer in layout.layers.values()), *recipe.frozen(layout)}
    base = {name: weights[name].clone() for name in sorted(names)}
    jobs = sum(len(client.data) for client in clients.values())
    served, sharers = layout.with_heads(heads or {}), Counter(job.head for c in clients.values() for job in c.data)
    weights |= {f"{name}#{head}": value for head, own in (heads or {}).items() for name, value in own.items()}
    server = ServerAggregation(recipe, served, jobs, seed, base, sharers)
    local_trainer = LocalTrainer(
        toy, layout, recipe, LocalSettings(steps=steps, batch_size=4, clip=clip), base, heads=heads
    )
    state, callbacks = server.initial(weights), [*callbacks, Sent()]
    return Federator(
        server, clients, SerialEngine(local_trainer, clients), FixedSize(cohort), callbacks, rounds, seed, state
    )


def toy_batches(data: JobData, seed: int, size: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """What a fit sees, written by hand: one permutation per pass, cut into batches, without end."""
    x, y = (column[data.train] for column in data.dataset.tensors)  # type: ignore[attr-defined]  # a TensorDataset
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(len(x), generator=generator).split(size):
            yield x[batch], y[batch]


def weights_of(federator: Federator, gid: int | None = None) -> dict[str, Tensor]:
    """The global model of a group."""
    return federator.state.groups[federator.state.home if gid is None else gid].weights


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """Equal tensors under equal names; bit-identical without a tolerance."""
    assert sorted(found) == sorted(expected)
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
