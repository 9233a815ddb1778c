"""Warnings about a run's costs, and notes on how exact they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from flt.algorithm.recipe import Recipe
from flt.client.trainer import OWN_MODULES
from flt.core import formatting
from flt.core.memory import available_memory
from flt.run.planning.dry_trainer import DryTrainer
from flt.run.planning.outcome import RunPlan
from flt.run.schema import TrainConfig

MANY_FITS = 20_000
"""Number of local fits above which a run may take days."""
MANY_PASSES = 10
"""Number of passes of one fit over the client's examples above which the client overfits."""
LARGE = 50_000_000
"""Number of parameters of a model that is slow to train without a GPU."""


def warnings_of(plan: RunPlan, cfg: TrainConfig) -> tuple[str, ...]:
    """Returns what a user may not have meant, one sentence each."""
    return tuple(_warnings(plan, cfg))


def _warnings(plan: RunPlan, cfg: TrainConfig) -> Iterator[str]:
    fits, clients = sum(one.jobs for one in plan.rounds), plan.clients
    if fits > MANY_FITS:
        yield f"{len(plan.rounds):,} rounds x {max(one.jobs for one in plan.rounds):,} jobs are {fits:,} local fits"
    needed, free = plan.memory["peak"] - plan.memory["built"], available_memory(torch.device("cpu"))
    if needed > free:
        yield f"{formatting.size(needed)} more memory are needed, and {formatting.size(free)} are free"
    room, written = _free_disk(cfg.root), sum(plan.disk.values())
    if written > room:
        yield f"{formatting.size(written)} are written, and {formatting.size(room)} are free on the disk"
    if plan.model_size > LARGE and not torch.cuda.is_available():
        yield f"no GPU is found, and the model has {plan.model_size / 1e6:,.0f} million parameters"
    if small := sum(client.examples < cfg.batch_size * client.jobs for client in clients):
        yield f"{small} of {len(clients)} clients have fewer training examples than batch_size={cfg.batch_size}"
    passes = [c.steps * cfg.batch_size * cfg.local.accumulate / c.examples for c in clients]
    if often := sum(number > MANY_PASSES for number in passes):
        yield f"a fit passes more than {MANY_PASSES} times over the examples of {often} of {len(clients)} clients"
    if idle := sum(not client.fits for client in clients):
        yield f"{idle} of {len(clients)} clients take part in no round"


def notes(plan: RunPlan, cfg: TrainConfig, recipe: Recipe, trainer: DryTrainer) -> tuple[str, ...]:
    """Returns how exact the numbers of a plan are, one sentence each."""
    return tuple(_notes(plan, cfg, recipe, trainer))


def _notes(plan: RunPlan, cfg: TrainConfig, recipe: Recipe, trainer: DryTrainer) -> Iterator[str]:
    down, up = plan.bytes_down, plan.bytes_up
    yield "bytes down: exact" if down.least == down.most else f"bytes down: {_range(down.least, down.most)}"
    yield f"bytes up: {_range(up.least, up.most)}, by the digits of the metrics that clients report"
    if recipe.compression.packs:
        yield "scores decide how far a quantised message fills its budget"
    if down.least != down.most and not recipe.compression.packs:
        yield "training decides which components are sent, and how many digits their ids have"
    if type(trainer.module) not in OWN_MODULES:
        yield "what the module logs isn't known before a step, and isn't counted: about 40 bytes per metric and update"
    if cfg.stop.accuracy is not None or cfg.stop.patience is not None:
        yield "stop.accuracy and stop.patience may end the run earlier"
    if cfg.resume is not None:
        yield "the whole run is counted, with the rounds that are finished"
    if not plan.memory["activations"]:
        yield "the module's activations couldn't be counted, so the memory is larger"
    if plan.seconds and (cfg.prefix_cache or cfg.compile):
        yield "the trial has neither prefix_cache nor compile, so the run is faster"


def _range(least: int, most: int) -> str:
    return f"{least:,} to {most:,}"


def _free_disk(root: str) -> float:
    """Returns the free bytes on the disk of a folder that may not exist yet."""
    folder = Path(root).absolute()
    while not os.path.isdir(folder):
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)
