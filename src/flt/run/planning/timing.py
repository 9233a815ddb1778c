"""Extrapolation of a trial's times to a round and to the whole run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flt.client.trainer import LocalTrainer
from flt.data.training_sample import training_samples
from flt.engines.distributed import DistributedSettings
from flt.protocol.messages import Plan
from flt.run.federation import Federation
from flt.run.planning.memory import jobs_at_once
from flt.run.planning.traffic import RoundTraffic, Traffic
from flt.run.planning.trial import Trial
from flt.run.schema import TrainConfig

JOBS = 2
"""Number of jobs that are timed with an engine that trains one job at a time."""


def seconds(
    cfg: TrainConfig,
    federation: Federation,
    traffic: Traffic,
    trainer: LocalTrainer,
    settings: Any,
    plans: Sequence[Plan],
    rounds: Sequence[RoundTraffic],
) -> dict[str, float]:
    """Returns the times of a run, extrapolated from a trial with each of its plans.

        round = jobs (fit + steps step) / processes + server + evaluation / eval.every

    The time of the server is that of the dry run's rounds, without its fits. Checkpoints, pictures and the start of the
    program aren't timed.

    Args:
        cfg: Configuration of the run.
        federation: Module, clients and data.
        traffic: The dry run, after its last round.
        trainer: Local trainer that really trains.
        settings: Settings of the engine.
        plans: The different plans of the rounds, without their factors on the learning rate.
        rounds: All rounds.

    Returns:
        ``step``, ``fit`` and ``evaluation`` as in the formula, for the first plan, and the means ``server`` and
        ``round``, and ``run``, the time of all rounds.
    """
    federator, clients = traffic.federator, traffic.federator.clients.values()
    everyone = sum(len(client.data) for client in clients)
    at_once = jobs_at_once(settings, max(one.jobs for one in rounds))
    trial = Trial(federator, trainer, traffic.first, settings, min(everyone, max(at_once, JOBS)))
    paces = {plan: trial.pace(plan) for plan in plans}
    heads = federation.task_heads()
    evaluated = {name: heads[federation.subsets.get(name, name)] for name in federation.validation}
    evaluation = trial.evaluation(federation.validation, evaluated)
    if cfg.eval.train_examples:
        evaluation += trial.evaluation(training_samples(clients, cfg.eval.train_examples, cfg.seed), heads)
    processes = cfg.devices * settings.nodes if isinstance(settings, DistributedSettings) else 1
    server = traffic.seconds / max(traffic.simulated, 1)
    fits = 0.0
    for one in rounds:
        plan = dataclasses.replace(one.plan, lr_factor=1.0)
        steps = sum(traffic.trainer.steps(plan, job) for client in clients for job in client.data) / everyone
        received = evaluation if cfg.eval.distributed else 0.0
        fits += one.jobs * (paces[plan].fit + steps * paces[plan].step) / processes + one.jobs * received
    total = fits + len(rounds) * server + evaluation * (1 + len(rounds) // cfg.eval.every)
    first = paces[plans[0]]
    return {
        "step": first.step, "fit": first.fit, "evaluation": evaluation, "server": server,
        "round": total / len(rounds), "run": total,
    }  # fmt: skip
