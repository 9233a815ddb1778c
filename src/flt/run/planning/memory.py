"""Estimate of the memory and the disk space that a run needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.data import Subset

from flt.client.fit_cost import FLOAT, moments
from flt.client.users_code import attributes_kept
from flt.core.memory import release_memory
from flt.data.clients import JobData
from flt.data.samplers import lengths_of
from flt.engines.batched.engine import BatchedSettings
from flt.protocol.layout import TRAVELLING, Layout
from flt.protocol.messages import Plan, encoded_size
from flt.run.planning.dry_trainer import DryTrainer
from flt.server.federator import Federator

LOGGERS = 50_000_000
"""Bytes that TensorBoard, the pictures and the checkpoints take in a run, as measured. A dry run has none of them."""
METRICS = 1400
"""Bytes that the metrics of one round take in a checkpoint, as measured."""
SUM = 32
"""Bytes of one entry of a running sum: two integers of 64 bits, and as much for the term that is added to it."""
JOBS = 10
"""Assumed number of jobs that engine=batched trains at once, if the configuration leaves the number open."""


def memory(federator: Federator, trainer: DryTrainer, plans: Iterable[Plan], jobs: int, built: int) -> dict[str, int]:
    """Estimates the peak memory of the process that trains, in bytes.

    The estimate adds up what exists at the same time at the end of a fit's first step:

    - ``built``: what the process takes once data and model are loaded (measured), and what loggers take,
    - ``server``: the state before and after the aggregation, copies of weights that training changes, and the running
      sums, or the updates of a whole cohort if the rule needs them all,
    - ``fit``: for each job that is trained at once, gradients, the optimiser's moments, and copies of the weights for
      the update,
    - ``activations``: for each of these jobs, what autograd keeps of a batch of the longest examples. It is counted in
      a training step with fake tensors, which have shapes but no values, so nothing is computed. 0 if the module can't
      be traced in this way.

    Args:
        federator: Federator of the dry run, after its last round.
        trainer: Local trainer of the dry run.
        plans: The different plans of the run's rounds.
        jobs: Number of jobs that are trained at once.
        built: Bytes that the process has taken once data and model were loaded.
    """
    layout, recipe = trainer.layout, trainer.recipe
    largest = max(plans, key=lambda plan: _numbers(layout, layout.names(plan.train)))
    trained, sent = _numbers(layout, layout.names(largest.train)), _numbers(layout, layout.sent(largest))
    copies = _numbers(layout, [*layout.names(TRAVELLING), *recipe.frozen(layout), *recipe.frozen(layout)])
    kept = SUM * sent if recipe.streams else 3 * FLOAT * sent * max(len(federator.cohort), 1)
    fit = FLOAT * (trained * (2 + moments(trainer.module) + (recipe.importance.source == "clients")) + sent)
    found = {
        "built": built + LOGGERS,
        "server": 2 * encoded_size(federator.state) + FLOAT * copies + kept,
        "fit": jobs * fit,
        "activations": jobs * activations(trainer, largest, _largest(federator)),
    }
    return {**found, "peak": sum(found.values())}


def jobs_at_once(settings: Any, jobs: int) -> int:
    """Returns the number of jobs that the engine trains at once in a process.

    Args:
        settings: Settings of the engine.
        jobs: Number of jobs of a cohort.
    """
    if getattr(settings, "inside", settings.name) != BatchedSettings.name:
        return 1
    return min(settings.jobs or JOBS, max(jobs, 1))


def activations(trainer: DryTrainer, plan: Plan, data: JobData) -> int:
    """Returns the bytes that autograd keeps of a batch of a job's longest examples. 0 if the module can't be traced.

    The forward pass runs on fake tensors: their shapes are computed, and their values aren't.
    """
    module, size = trainer.module, trainer.settings.batch_size
    for name, parameter in trainer.parameters.items():
        parameter.requires_grad_(trainer.layout.entries[name].role in plan.train)
    lengths = lengths_of(data.training_set)
    order = np.arange(len(data.train)) if lengths is None else np.argsort(lengths)[::-1]
    batch = next(iter(trainer.loader(Subset(data.training_set, order[:size].tolist()), None)))
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> None:
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor.detach()

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing)
    try:
        with warnings.catch_warnings(action="ignore"), attributes_kept(module), mode, hooks:
            module.training_step(tree_map_only(Tensor, mode.from_tensor, batch), 0)
    except Exception:  # a user's code may read values, which fake tensors lack
        kept.clear()
    # While a graph lives, torch takes the shapes of its parameters for those of later graphs, and heads may differ.
    release_memory()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def disk(federator: Federator, exported: Mapping[str, int], keep: int) -> dict[str, int]:
    """Estimates the bytes of a run's folder, besides logs and pictures.

    Args:
        federator: Federator of the dry run, after its last round.
        exported: Name of the export's folder -> its bytes.
        keep: Number of checkpoints that are kept.
    """
    states = [encoded_size(state) for state in federator.client_states.values()]
    jobs = sum(len(client.data) for client in federator.clients.values())
    kept = math.ceil(sum(states) / len(states) * jobs) if states else 0
    return {
        "checkpoints": keep * (encoded_size(federator.state) + METRICS * federator.state.rounds),
        "client states": kept,
        **exported,
    }


def _largest(federator: Federator) -> JobData:
    return max((job for client in federator.clients.values() for job in client.data), key=lambda job: job.examples)


def _numbers(layout: Layout, names: Iterable[str]) -> int:
    return sum(math.prod(layout.entries[name].shape) for name in names)
