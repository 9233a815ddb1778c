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

from flt import fit as flt_fit  # isort: skip  # as a user's script begins: it brings torch along
import torch  # isort: skip
from peft import LoraConfig, inject_adapter_in_model  # isort: skip
from torch import Tensor, nn  # isort: skip
from torch import distributed as dist  # isort: skip
from torch.utils.data import Dataset  # isort: skip

from benchmarks.speed import plain, workload  # isort: skip
from flt.server.callback import FedCallback  # isort: skip
from flt.callbacks.checkpoint import Checkpoint  # isort: skip
from flt.callbacks.evaluate import Evaluate  # isort: skip
from flt.callbacks.loggers import Loggers  # isort: skip
from flt.callbacks.metrics_csv import MetricsCsv  # isort: skip
from flt.models.module import ClientModule, Optimizer

from flt.data.clients import ClientSpec, JobData  # isort: skip
from flt.server.federator import Federator  # isort: skip

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


def gate(line: Line, whole: bool) -> None:
    """Lets every round of this process begin when the coordinator says so, the drawing of its cohort included.

    Args:
        line: To the coordinator.
        whole: Leave the run's callbacks that evaluate and write where they are.
    """
    run = Federator._round  # no hook lies before the drawing of a cohort, and the later processes of a run have none

    def gated(federator: Federator) -> None:
        several = dist.is_initialized()
        first = not several or dist.get_rank() == 0
        if not (whole or federator.history):
            federator.callbacks = [its for its in federator.callbacks if not isinstance(its, LEFT_OUT)]
        if first and not line.begin():
            os._exit(0)  # not through flt's own end of a run, which exports
        if several:
            dist.barrier()  # else the others would do their share of the round before its clock runs
        run(federator)
        if first:
            line.end(by_plain_names(federator.state.groups[federator.state.home].weights))

    Federator._round = gated  # type: ignore[method-assign]  # as above


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


def fit(
    given: workload.Workload, root: Path, overrides: Sequence[str], rounds: int, callbacks: Sequence[FedCallback] = ()
) -> None:
    """Federates the workload.

    Args:
        given: The workload.
        root: Of the runs.
        overrides: Of the engine.
        rounds: How many.
        callbacks: See the rounds.
    """
    size = given.size
    settings = [f"root={root}", "threads=1", f"local.steps={size.steps}", f"cohort.size={size.cohort}"]
    flt_fit(
        module(given), clients(given), "fedit", rounds, seed=given.seed, batch_size=size.batch, head=plain.HEAD,
        callbacks=callbacks, progress=False, overrides=[*settings, f"adapter.rank={size.rank}", *overrides],
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
    gate(line, asked.whole)
    try:
        fit(workload.load(asked.workload), asked.folder / "runs", overrides, ENDLESS)
    except ValueError as error:  # an engine that this version doesn't have
        line.say(missing=str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
