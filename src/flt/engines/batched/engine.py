"""The batched engine: several jobs at once through one frozen backbone, their adapters stacked on a client axis."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import Dataset

from flt.client.fit import LocalFit
from flt.client.isolation import leaving_no_trace, seed_everything
from flt.client.trainer import LocalTrainer
from flt.core.errors import InputError
from flt.core.quiet import keyboard_interrupts_pass, quiet, single_process
from flt.core.timeout import ClientTimeoutError, time_limit
from flt.data.clients import ClientSpec
from flt.data.examples import Collate
from flt.engines.batched import autotune as tuning
from flt.engines.batched import verify as verify
from flt.engines.batched.adapters import Stack, layers
from flt.engines.batched.batches import Steps, Unstackable
from flt.engines.batched.module import JobCallbacks, StackedJob, StackedModule
from flt.engines.batched.shortcut import Shortcut
from flt.engines.serial import SerialEngine
from flt.models.causal import CausalModule
from flt.models.module import ClientModule
from flt.protocol.layout import TRAVELLING
from flt.protocol.messages import Update
from flt.protocol.packing import opened_payload
from flt.protocol.state import ClientState
from flt.server.engine import Outcome, Task

_log = logging.getLogger(__name__)
Result = tuple[Update, ClientState]


@dataclasses.dataclass
class BatchedSettings:
    """Several jobs at once.

    Attributes:
        name: Always ``batched``.
        jobs: How many at once; None: timed with the first cohort, then written into the run's configuration.
    """

    name: str = "batched"
    jobs: int | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise InputError.of("engine.jobs", self.jobs, "an integer >= 1, or null")


class BatchedEngine(SerialEngine):
    """Trains several jobs at once: what comes out is the serial engine's up to rounding.

    What can't be stacked is trained serially instead, which is said once: a user's own module or callbacks, dropout,
    layers that aren't linear, rounds in which the whole model trains.

    Args:
        local_trainer: The resident module.
        clients: Client id -> its data.
        settings: How many jobs at once.
        on_settings: Called with the settings once the number of jobs was timed, or memory didn't suffice.
    """

    independent: ClassVar[bool] = False

    def __init__(
        self,
        local_trainer: LocalTrainer,
        clients: Mapping[int, ClientSpec],
        settings: BatchedSettings | None = None,
        on_settings: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(local_trainer, clients, settings or BatchedSettings(), on_settings)
        self.jobs = self.settings.jobs
        self._said: set[str] = set()
        self._verified: dict[tuple[str, ...], Shortcut | None] = {}
        self._verified_with: dict[tuple[str, ...], int] = {}
        """Of how many jobs at once it was asked: one says nothing of several."""
        self._refused: dict[tuple[str, ...], str] = {}

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields each job's update and private state, or why there are none, in the order of the tasks."""
        tasks = iter(tasks)
        if self.jobs is None:
            first = list(itertools.islice(tasks, 1))
            if first and self.fallback_reason(first[0]) is None:
                first += itertools.islice(tasks, tuning.MOST - 1)
                self._time(first)
            tasks = itertools.chain(first, tasks)
        while chunk := list(itertools.islice(tasks, self.jobs or 1)):
            yield from self._chunk(chunk)

    def _chunk(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Tasks of one plan and one head go together; what can't is trained when its turn comes."""
        found: dict[int, Outcome] = {}
        for i, task in enumerate(tasks):
            if i not in found:
                alone = self.fallback_reason(task) is not None
                its = [j for j in range(i, i + 1 if alone else len(tasks)) if self._kind(tasks[j]) == self._kind(task)]
                found |= zip(its, self._together([tasks[j] for j in its]), strict=True)
            yield found.pop(i)

    def _together(self, tasks: Sequence[Task]) -> list[Outcome]:
        """What several tasks yield: out of memory they go in halves, and where one fails, one after another."""
        if self.fallback_reason(tasks[0]) is not None:
            return list(super().run(tasks))
        parts, failed = [tasks], list[Outcome]()
        try:
            return list(self._fit(tasks))
        except Unstackable as error:
            self._refused[tasks[0].payload.plan.train] = str(error)
        except Exception as error:
            if len(tasks) > 1 and isinstance(error, RuntimeError) and tuning.is_out_of_memory(error):
                half = len(tasks) // 2
                parts = [tasks[i : i + half] for i in range(0, len(tasks), half)]
            elif len(tasks) == 1:
                failed = [self.failure_policy.failure(tasks[0].payload.job, error)]
            else:
                if not isinstance(error, ClientTimeoutError):
                    self.failure_policy.failure(tasks[0].payload.job, error)  # raises if the first failure ends the run
                parts = []  # Only single fits show which of the jobs failed or took too long.
        # outside the handler, whose exception keeps what the failed fit holds
        tuning.free()
        if failed or not parts:
            return failed or list(super().run(tasks))
        if len(parts) > 1:
            self._halve(len(tasks), len(parts[0]))
        return [outcome for part in parts for outcome in self._together(part)]

    def _halve(self, before: int, jobs: int) -> None:
        if self.jobs is None or jobs < self.jobs:
            _log.warning("out of memory with %d jobs at once; engine=batched goes on with %d", before, jobs)
            self._found(jobs)

    def set_jobs(self, jobs: int) -> None:
        """Takes over how many jobs at once other processes found best, since rounding depends on it."""
        if jobs != self.jobs:
            self._found(jobs)

    def fallback_reason(self, task: Task) -> str | None:
        """Why jobs like this one are trained one after another, said once; None where they are stacked."""
        train = task.payload.plan.train
        if train not in self._refused:
            try:
                self._check(train)
                return None
            except Unstackable as error:
                self._refused[train] = str(error)
        why = self._refused[train]
        if why not in self._said:
            self._said.add(why)
            _log.warning("engine=batched trains one job after another where %s train: %s", ", ".join(train), why)
        return why

    def _check(self, train: Sequence[str]) -> None:
        local_trainer, module = self.local_trainer, self.local_trainer.module
        if type(module) not in (ClientModule, CausalModule):
            raise Unstackable(f"{type(module).__name__} isn't flt's own module")
        if local_trainer.callbacks:
            raise Unstackable("your Lightning callbacks belong to the fit of one job")
        if local_trainer.client_aware:
            raise Unstackable(f"{type(local_trainer.client_aware[0]).__name__} computes with the figures of one client")
        if set(train) - set(TRAVELLING):
            raise Unstackable("the backbone itself changes")
        layers(module, local_trainer.layout)
        for sub in module.modules():
            if isinstance(sub, nn.modules.dropout._DropoutNd) and sub.p > 0 and sub.training:
                raise Unstackable("dropout draws anew for each job")
            if isinstance(sub, nn.modules.batchnorm._BatchNorm) and sub.training:
                raise Unstackable("a batch norm mixes the examples of a batch")
        if getattr(module.model, "_compiled_call_impl", None) is not None:
            raise Unstackable("the compiled model knows one job's layers")

    def _fit(self, tasks: Sequence[Task]) -> list[Result]:
        """Trains tasks together."""
        with self._leaving_no_trace():
            jobs, stack = self._stacked(tasks, self.local_trainer.evaluate)
            with self._within(len(tasks)):
                module = self._train(jobs, stack)
                for job, loss in zip(jobs, module.train_losses(len(jobs)), strict=True):
                    job.fit.close(job.callbacks)
                    job.metrics["fit/train_loss"] = loss
                return [self._result(job) for job in jobs]

    def _leaving_no_trace(self) -> AbstractContextManager[None]:
        return leaving_no_trace(self.local_trainer.module, self.local_trainer.parameters.values())

    def _within(self, jobs: int) -> AbstractContextManager[None]:
        """The time that so many jobs may take one after another: which of them is slow, only single fits show."""
        return time_limit(None if self.local_trainer.timeout is None else self.local_trainer.timeout * jobs)

    def seconds(self, tasks: Sequence[Task]) -> float:
        """Times a few steps of a fit that leaves no trace.

        Returns:
            Seconds per step and job.
        """
        clock = tuning.Clock()
        with self._leaving_no_trace(), self._within(len(tasks)):
            self._train(*self._stacked(tasks, lambda dataset: {}), tuning.STEPS, [clock])
        return clock.seconds / len(tasks)

    def _stacked(
        self, tasks: Sequence[Task], evaluate: Callable[[Dataset], dict[str, float]]
    ) -> tuple[list[StackedJob], Stack]:
        """Installs and evaluates each job's model in turn, and stacks what was put into the module."""
        local_trainer, jobs = self.local_trainer, []
        for task in tasks:
            client, index = task.payload.job
            data, payload = self.clients[client].data[index], opened_payload(task.payload, local_trainer.layout)
            seed_everything(task.seed, local_trainer.module.device)
            local_trainer.install(payload, task.private, data.head)
            tensors = {name: local_trainer.parameters[name].detach() for name in local_trainer.layout.names(TRAVELLING)}
            held_out = data.validation_set(local_trainer.settings.eval_examples)
            metrics = {f"distributed/{key}": value for key, value in evaluate(held_out).items()}
            start = {name: tensors[name] for name in local_trainer.layout.names(payload.plan.train)}
            fit = LocalFit(local_trainer.served.for_head(data.head), payload, task.private, {}, start)
            jobs.append(StackedJob(fit, data, task.seed, tensors, metrics))
        stack = Stack(
            local_trainer.module, local_trainer.layout, [job.tensors for job in jobs], tasks[0].payload.plan.train
        )
        for i, job in enumerate(jobs):
            for name in job.fit.start:
                job.fit.trained[name] = nn.Parameter(stack.part(i, name, stack.tensors[name].data))
            job.callbacks = local_trainer.recipe.callbacks(job.fit)
            job.check()
        return jobs, stack

    def _train(
        self, jobs: Sequence[StackedJob], stack: Stack, most: int | None = None, watching: Sequence[Callback] = ()
    ) -> StackedModule:
        stacked = self._module(jobs, stack, most)
        with quiet(), single_process(), keyboard_interrupts_pass(), stack.computing():
            trainer = self.local_trainer.trainer(
                [JobCallbacks(jobs, stack, stacked.steps), *watching], [], max_epochs=1, accumulate_grad_batches=1
            )
            trainer.fit(stacked, stacked.steps)
        return stacked

    def _module(self, jobs: Sequence[StackedJob], stack: Stack, most: int | None = None) -> StackedModule:
        """What trains the stack, with what it may leave out."""
        local_trainer, settings = self.local_trainer, self.local_trainer.settings
        module = local_trainer.module
        assert isinstance(module, ClientModule)
        plan = jobs[0].fit.payload.plan
        steps = Steps(
            [local_trainer.loader(job.data.training_set, job.seed) for job in jobs], settings.accumulate,
            most or plan.steps or settings.steps, settings.epochs or 1, self._padding(),
        )  # fmt: skip
        stacked, asked = StackedModule(module, stack, steps, settings.clip), jobs[: verify.JOBS]
        if self._verified_with.get(plan.train, 0) < len(asked):
            self._verified[plan.train] = verify.verify_stacking(local_trainer, asked, stacked)
            self._verified_with[plan.train] = len(asked)
        stack.shortcut = self._verified[plan.train]
        return stacked

    def _result(self, job: StackedJob) -> Result:
        local_trainer = self.local_trainer
        held_out = job.data.validation_set(local_trainer.settings.eval_examples)
        local_trainer.put({**job.tensors, **{name: parameter.detach() for name, parameter in job.fit.trained.items()}})
        job.metrics |= {f"fitted/{key}": value for key, value in local_trainer.evaluate(held_out).items()}
        return job.fit.update(len(job.data.train), job.metrics), job.fit.private_state(local_trainer.initial)

    def _time(self, tasks: Sequence[Task]) -> None:
        """Finds out how many jobs at once are fastest; not yet where there aren't two to be stacked."""
        alike = [task for task in tasks if self._kind(task) == self._kind(tasks[0])]
        if len(alike) < 2:
            return
        try:
            with (
                self._leaving_no_trace(),
                self._within(verify.JOBS),
            ):  # of several at once, whose steps are timed
                self._module(*self._stacked(alike[: verify.JOBS], lambda dataset: {}), tuning.STEPS)
            jobs = tuning.chosen(lambda jobs: self.seconds(alike[:jobs]), len(alike), self.local_trainer.module.device)
        except Unstackable as error:
            self._refused[tasks[0].payload.plan.train] = str(error)
            self.fallback_reason(tasks[0])
            return
        except Exception as error:
            self.failure_policy.failure(alike[0].payload.job, error)  # raises if the first failure ends the run
            return  # A job fails: the jobs of this round are trained one at a time, and those of the next are timed.
        _log.info("engine=batched trains %d jobs at once", jobs)
        self._found(jobs)

    def _found(self, jobs: int) -> None:
        self.jobs = jobs
        self.on_settings(dataclasses.asdict(dataclasses.replace(self.settings, jobs=jobs)))

    def _kind(self, task: Task) -> tuple[str, str]:
        """Equal for tasks that can be stacked on each other."""
        client, index = task.payload.job
        return repr(task.payload.plan), self.clients[client].data[index].head

    def _padding(self) -> int:
        collate, config = self.local_trainer.collate, getattr(self.local_trainer.module.model, "config", None)
        if isinstance(collate, Collate):
            return collate.pad_token_id
        return getattr(config, "pad_token_id", None) or 0
