"""The run's own labelled data: a split as the run evaluates it, and the examples that its clients hold out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.core.typed import typed
from flt.data.deal import deal
from flt.data.examples import Examples
from flt.data.joint import JointExamples
from flt.data.joint_jobs import TaskData, is_joint
from flt.data.task_rounds import with_task_changes
from flt.data.tasks import DataSet, load_all
from flt.inference.labelled import Labelled, known_parts, matched
from flt.inference.models import Exported
from flt.protocol.messages import JobId
from flt.run.compose import compose_config
from flt.run.schema import TrainConfig
from flt.run.stored import OWN, read_settings


def own_settings(run: Any) -> TrainConfig:
    """Returns the configuration of a run, also of one that an older version of flt has written."""
    defaults: Any = OmegaConf.to_container(compose_config([]))
    saved: Any = OmegaConf.to_container(read_settings(run, "run"))
    sections = {key: {**defaults[key], **saved.get(key, {})} for key in ("eval", "cache", "partition", "cohort")}
    known = {key: saved.get(key, value) for key, value in defaults.items()}
    built: TrainConfig = typed(TrainConfig, OmegaConf.create({**known, **sections, "resume": None}), "run")
    return built


def own_data(
    cfg: TrainConfig, models: Sequence[Exported], split: str, clients: bool
) -> tuple[list[Labelled], dict[JobId, list[Labelled]]]:
    """Loads the examples on which the run itself evaluated its models.

    Args:
        cfg: Configuration of the run.
        models: The run's models.
        split: Name of the split.
        clients: Whether the clients' held-out examples are wanted.

    Returns:
        The examples of the split, and the held-out examples of each job, see :func:`held_out`.

    Raises:
        InputError: The run has no data that flt can load, or no such split.
    """
    if cfg.data["name"] == OWN:
        raise InputError.of("data", None, "data=...", "the run's data are known only to the caller of flt.fit")
    size = {"test": cfg.eval.test_examples, "validation": cfg.eval.examples}.get(split)
    sample = None if size is None else (size, cfg.seed)
    sets = load_all(cfg)
    known = known_parts(sets, models)
    found = matched(known, models, split, sample, by_column=cfg.eval.by_column)
    return found, held_out(cfg, sets, matched(known, models, "train")) if clients else {}


def held_out(
    cfg: TrainConfig, sets: Sequence[DataSet], train: Sequence[Labelled]
) -> dict[tuple[int, int], list[Labelled]]:
    """Divides the training examples among the clients as the run did, and returns what each job holds out.

    They are the examples on which the run evaluates the model that a job receives: at most ``eval.client_examples``, or
    all if this is 0. A job that changes its task has the data of the last round.

    Args:
        cfg: Configuration of the run.
        sets: All data sets of the run.
        train: Training examples of the tasks that are evaluated.

    Returns:
        Client and index of a job -> its held-out examples of each task. Jobs that hold nothing out are left out.
    """
    tasks = []
    for data_set in sets:
        column, raw = data_set.data.column, data_set.raw
        has_column = column is not None and column in raw.splits["train"].column_names
        values = raw.values("train", str(column)) if has_column else None
        for task, parts in data_set.tasks.items():
            positions, labels = parts["train"]
            examples = Examples(None, labels)  # type: ignore[arg-type]  # no input is read
            tasks.append(TaskData(task, {"train": examples}, {} if values is None else {"train": values[positions]}))
    own = {one.task: one for one in train}
    if is_joint(cfg, tasks):
        return _of_joint_jobs(cfg, tasks, own)
    clients = with_task_changes(deal(cfg, tasks), cfg.task_changes or {})
    jobs = {(client.id, index): job.at(cfg.rounds) for client in clients for index, job in enumerate(client.data)}
    most = cfg.eval.client_examples or None
    rows = {job: np.asarray(data.validation_set(most).indices) for job, data in jobs.items()}
    return {job: [own[jobs[job].task].at(at)] for job, at in rows.items() if len(at) and jobs[job].task in own}


def _of_joint_jobs(
    cfg: TrainConfig, tasks: Sequence[TaskData], own: Mapping[str, Labelled]
) -> dict[tuple[int, int], list[Labelled]]:
    """Returns client and index of a job with several tasks -> its held-out examples of each task."""
    found = {}
    for client in deal(cfg, tasks):
        (job,) = client.data
        assert isinstance(job.dataset, JointExamples)
        rows = job.dataset.by_task(job.validation_set(cfg.eval.client_examples or None).indices)
        found[client.id, 0] = [own[task].at(at) for task, at in rows.items() if task in own]
    return found
