"""Rounds of both engines beside those of a hand-written loop, which swaps adapters on one shared backbone.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.loop

All train the same clients on the same batches with the same seeds, in turn. Prints how far their updates are apart,
and of rounds in turn the median ratio of CPU time and of wall time. The batched engine times first how many clients at
once are fastest; it doesn't compute the tokens of the last block that the head doesn't read, as the loop does.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.utils.data import Dataset

from flt.adapters.lora import LoraSettings, attach
from flt.callbacks.server import ServerAggregation
from flt.client import ClientModule, ClientSpec, JobData, Optimizer
from flt.engines.batched import Batched
from flt.engines.serial import Serial, Task
from flt.recipe import Recipe
from flt.rules.mean import Mean
from flt.settings import LocalSettings
from flt.site import Site
from flt.state import ClientState

CLIENTS, STEPS, BATCH, LENGTH, RANK, CLASSES, EXAMPLES = 10, 8, 16, 64, 8, 4, 128
WARM_UP, ROUNDS = 2, 9
ENCODER = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
Updates = dict[int, dict[str, Tensor]]
"""Client -> its trained tensors by name."""


class Tokens(Dataset):
    """Random token ids of one length, with random labels."""

    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(1000, (size, LENGTH), generator=generator)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.ids[i],
            "attention_mask": torch.ones(LENGTH, dtype=torch.long),
            "labels": self.labels[i],
        }


@dataclasses.dataclass
class Federated:
    """One module, the clients' jobs, and the ways to train them.

    Attributes:
        engine: The serial engine on its site.
        stacking: The batched engine on the same.
        tasks: One for each client.
        module: The site's.
    """

    engine: Serial
    stacking: Batched
    tasks: list[Task]
    module: ClientModule

    def serial(self) -> Updates:
        """A round by the serial engine."""
        return {update.job[0]: dict(update.tensors) for update, _ in self.engine.run(self.tasks)}

    def batched(self) -> Updates:
        """A round by the batched engine."""
        return {update.job[0]: dict(update.tensors) for update, _ in self.stacking.run(self.tasks)}

    def by_hand(self) -> Updates:
        """A round by the loop that one would write: put an adapter in, train it, take it out."""
        trained = {name: p for name, p in self.module.named_parameters() if name in self.tasks[0].payload.tensors}
        updates = {}
        for task in self.tasks:
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(task.payload.tensors[name])
            self._loop(self.engine.clients[task.payload.job[0]].data[0], list(trained.values()), task.seed)
            updates[task.payload.job[0]] = {name: p.detach().clone() for name, p in trained.items()}
        return updates

    def _loop(self, data: JobData, trained: list[torch.nn.Parameter], seed: int) -> None:
        tokens: Tokens = data.dataset  # type: ignore[assignment]  # as it was made below
        optimizer = self.module.optimizer.build(trained)
        mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
        for chosen in itertools.islice(batches(data.train, seed), STEPS):
            logits = self.module.model(input_ids=tokens.ids[chosen], attention_mask=mask).logits
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, tokens.labels[chosen]).backward()
            optimizer.step()


def batches(train: np.ndarray, seed: int) -> Iterator[Tensor]:
    """Positions of a batch's examples (BATCH,), one permutation per pass, without end."""
    generator, positions = torch.Generator().manual_seed(seed), torch.as_tensor(train)
    while True:
        for batch in torch.randperm(len(positions), generator=generator).split(BATCH):
            yield positions[batch]


def federated(clients: int = CLIENTS, encoder: Mapping[str, int] = ENCODER) -> Federated:
    """Clients with examples of their own around one encoder with LoRA on query and value."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **encoder, vocab_size=1000, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    module = ClientModule(transformers.BertForSequenceClassification(config), CLASSES, Optimizer())
    layout, recipe = attach(module, LoraSettings(rank=RANK, alpha=2.0 * RANK), 0), Recipe(Mean())
    tokens = Tokens(clients * EXAMPLES, 1)
    shares = np.arange(len(tokens)).reshape(clients, -1)
    specs = {i: ClientSpec(i, (JobData(tokens, share, share[:0]),)) for i, share in enumerate(shares)}
    server = ServerAggregation(recipe, layout, clients, 0, {})
    state = server.initial({name: parameter.detach() for name, parameter in module.named_parameters()})
    jobs = [job for spec in specs.values() for job in spec.jobs(RANK)]
    tasks = [Task(server.broadcast(state, job, jobs), ClientState(), job.client) for job in jobs]
    site = Site(module, layout, recipe, LocalSettings(steps=STEPS, batch_size=BATCH), {})
    return Federated(Serial(site, specs), Batched(site, specs), tasks, module)


def furthest(one: Updates, other: Updates) -> float:
    """The largest difference between the entries of two rounds' updates."""
    return max(
        float((tensor - other[client][name]).abs().max()) for client in one for name, tensor in one[client].items()
    )


def timed(run: Callable[[], Updates]) -> tuple[float, float]:
    """CPU and wall time of one round, in seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Compares the updates, then times rounds of both in turn."""
    torch.set_num_threads(1)
    found = federated()
    ways = {"serial": found.serial, "batched": found.batched}
    for name, way in [*ways.items()] * WARM_UP:
        print(f"largest difference of the updates, {name}:", furthest(way(), found.by_hand()))
    print("batched: clients at once", found.stacking.jobs)
    turns = [{name: timed(way) for name, way in {**ways, "loop": found.by_hand}.items()} for _ in range(ROUNDS)]
    for name, (i, kind) in itertools.product(ways, enumerate(("CPU time", "wall time"))):
        ratios = [turn[name][i] / turn["loop"][i] for turn in turns]
        middle, seconds = statistics.median(ratios), statistics.median(turn["loop"][i] for turn in turns)
        print(f"{name} / loop, {kind}: {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), loop {seconds:.2f} s")


if __name__ == "__main__":
    main()
