"""flt as a contestant: ``flt.fit`` on the shared workload, with the engine that the command line names.

    .venv/bin/python -m benchmarks.speed.ours WORKLOAD FOLDER --engine serial
    .venv/bin/python -m benchmarks.speed.ours WORKLOAD FOLDER --engine batched --set engine.jobs=5

Adapters and head are federated by the recipe ``fedit``. Evaluation, logging and checkpoints are left out, as they are
of every other contestant; what flt counts in each round stays. With ``--whole`` nothing is left out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.speed.protocol import Line  # before what takes seconds to import

import torch  # isort: skip
from peft import LoraConfig, inject_adapter_in_model  # isort: skip
from torch import Tensor, nn  # isort: skip
from torch.utils.data import Dataset  # isort: skip

import flt  # isort: skip
from benchmarks.speed import plain, workload  # isort: skip
from flt.callbacks.base import FedCallback  # isort: skip
from flt.callbacks.checkpoint import Checkpoint  # isort: skip
from flt.callbacks.evaluate import Evaluate  # isort: skip
from flt.callbacks.loggers import Loggers  # isort: skip
from flt.callbacks.metrics_csv import MetricsCsv  # isort: skip
from flt.client import ClientModule, ClientSpec, JobData, Optimizer  # isort: skip
from flt.federator import Federator  # isort: skip

LEFT_OUT = (Evaluate, Checkpoint, Loggers, MetricsCsv)
ENDLESS = 10**6
"""Rounds: the coordinator ends the run."""


class Tokens(Dataset):
    """The workload's examples, one by one."""

    def __init__(self, data: Mapping[str, Tensor]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data["labels"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        data = self.data
        return {"input_ids": data["ids"][i], "attention_mask": data["mask"][i], "labels": data["labels"][i]}


class Gate(FedCallback):
    """Lets a round begin when the coordinator says so.

    Args:
        line: To the coordinator.
        whole: Leave the run's callbacks that evaluate and write where they are.
    """

    def __init__(self, line: Line, whole: bool) -> None:
        self.line, self.whole = line, whole

    def on_fit_start(self, federator: Federator) -> None:
        """Puts itself around the rounds: drawing the cohort, which comes before every hook, is part of them."""
        if not self.whole:
            federator.callbacks = [its for its in federator.callbacks if not isinstance(its, LEFT_OUT)]
        run = federator._round

        def gated() -> None:
            if not self.line.begin():
                os._exit(0)  # not through flt's own end of a run, which exports
            run()
            self.line.end(by_plain_names(federator.state.groups[federator.state.home].weights))

        federator._round = gated  # type: ignore[method-assign]  # no hook lies before the drawing of the cohort


def by_plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """flt's and peft's names -> those of ``plain``."""
    return {name.removeprefix("model.").replace(".default.weight", ""): tensor for name, tensor in weights.items()}


def module(given: workload.Workload) -> ClientModule:
    """The workload's encoder with peft's LoRA at the workload's initial values."""
    model, hyper = plain.encoder(given.config, given.frozen), given.hyper
    config = LoraConfig(r=hyper.rank, lora_alpha=hyper.alpha, target_modules=list(plain.TARGETS))  # type: ignore[arg-type]  # alpha may be a fraction
    inject_adapter_in_model(config, model)
    put(model, given.start)
    return ClientModule(model, given.classes, Optimizer("adamw", hyper.lr, hyper.weight_decay))


def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes values by the names of ``plain`` into a model with peft's layers."""
    named = {by: p for name, p in model.named_parameters() for by in by_plain_names({name: p})}
    plain.put({name: named[name] for name in tensors}, tensors)


def clients(given: workload.Workload) -> list[ClientSpec]:
    """The workload's clients; nothing is held out, so nothing is evaluated."""
    tokens = Tokens(given.data)
    shares = {i: workload.share(i, given.size) for i in range(given.size.shares)}
    return [
        ClientSpec(i, (JobData(tokens, shares[i % given.size.shares], shares[0][:0]),))
        for i in range(given.size.clients)
    ]


def fit(given: workload.Workload, root: Path, callback: FedCallback, overrides: Sequence[str], rounds: int) -> None:
    """Federates the workload.

    Args:
        given: The workload.
        root: Of the runs.
        callback: Sees the rounds.
        overrides: Of the engine.
        rounds: How many.
    """
    size = given.size
    settings = [f"root={root}", "threads=1", f"local.steps={size.steps}", f"cohort.size={size.cohort}"]
    flt.fit(
        module(given), clients(given), "fedit", rounds, seed=given.seed, batch_size=size.batch, head=plain.HEAD,
        callbacks=[callback], progress=False, overrides=[*settings, f"adapter.rank={size.rank}", *overrides],
    )  # fmt: skip


def main() -> None:
    """Runs rounds for as long as the coordinator asks for them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="serial")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--whole", action="store_true")
    asked = parser.parse_args()
    line = Line(asked.folder)
    overrides = [f"engine={asked.engine}", *asked.set]
    try:
        fit(workload.load(asked.workload), asked.folder / "runs", Gate(line, asked.whole), overrides, ENDLESS)
    except ValueError as error:  # an engine that this version doesn't have
        line.say(missing=str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
