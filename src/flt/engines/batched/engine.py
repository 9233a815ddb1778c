"""The batched engine: it trains several jobs at once through one frozen backbone, with stacked adapters."""

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
from flt.client.isolation import isolated, seed_everything
from flt.client.trainer import LocalTrainer
from flt.core.errors import InputError
from flt.core.memory import is_out_of_memory, release_memory
from flt.core.quiet import keyboard_interrupts_pass, quiet, single_process
from flt.core.timeout import ClientTimeoutError, time_limit
from flt.data.clients import ClientSpec
from flt.data.examples import Collate
from flt.engines.batched import autotune
from flt.engines.batched.adapters import Stack
from flt.engines.batched.batches import Steps, Unstackable
from flt.engines.batched.module import JobCallbacks, StackedJob, StackedModule
from flt.engines.batched.shortcut import Shortcut
from flt.engines.batched.verify import VERIFIED_JOBS, check_stackable, verify_stacking
from flt.engines.serial import SerialEngine
from flt.models.module import ClientModule
from flt.protocol.layout import TRAVELLING
from flt.protocol.messages import Update
from flt.protocol.quantised_components import unpack_payload
from flt.protocol.state import ClientState
from flt.server.engine import Assignment, Outcome

_log = logging.getLogger(__name__)
Result = tuple[Update, ClientState]


@dataclasses.dataclass
class BatchedSettings:
    """Settings of the batched engine.

    Attributes:
        name: Always ``batched``.
        jobs: Number of jobs that are trained at once. If None, the engine times fits of the first cohort and chooses
            the number. The run's configuration then records the chosen number.
    """

    name: str = "batched"
    jobs: int | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise InputError.of("engine.jobs", self.jobs, "an integer >= 1, or null")


class BatchedEngine(SerialEngine):
    """Trains several jobs at once. The results equal those of the serial engine up to rounding.

    To train jobs at once, the engine stacks their adapters and heads. Jobs that can't be stacked are trained one after
    another, and the engine logs one warning for each reason. Such reasons are a user's own module or callbacks,
    dropout, trained layers that aren't linear, and plans that train the whole model.

    Args:
        local_trainer: Trains a job on the resident module, the module that stays on its device.
        clients: Client id -> the client's description, with its data.
        settings: Settings of the engine. If None, the defaults are used.
        on_settings: Called with the settings as a dict when the engine has chosen or reduced ``jobs``.
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
        self._warned: set[str] = set()
        self._verified: dict[tuple[str, ...], Shortcut | None] = {}
        self._verified_with: dict[tuple[str, ...], int] = {}
        """Roles that are trained -> number of jobs with which stacking was verified.

        A verification with fewer than VERIFIED_JOBS jobs is repeated when a stack has more jobs.
        """
        self._refused: dict[tuple[str, ...], str] = {}

    def run(self, assignments: Iterable[Assignment]) -> Iterator[Outcome]:
        """Trains the jobs of the assignments, several at once, and yields their outcomes in the given order."""
        assignments = iter(assignments)
        if self.jobs is None:
            first = list(itertools.islice(assignments, 1))
            if first and self.fallback_reason(first[0]) is None:
                first += itertools.islice(assignments, autotune.MAX_JOBS - 1)
                self._tune(first)
            assignments = itertools.chain(first, assignments)
        while chunk := list(itertools.islice(assignments, self.jobs or 1)):
            yield from self._chunk(chunk)

    def _chunk(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]:
        """Trains a few jobs, and yields their outcomes in order. Jobs with the same plan and head are stacked."""
        outcomes: dict[int, Outcome] = {}
        for i, assignment in enumerate(assignments):
            if i not in outcomes:
                serial = self.fallback_reason(assignment) is not None
                key, stop = self._stack_key(assignment), i + 1 if serial else len(assignments)
                members = [j for j in range(i, stop) if self._stack_key(assignments[j]) == key]
                outcomes |= zip(members, self._train_stack([assignments[j] for j in members]), strict=True)
            yield outcomes.pop(i)

    def _train_stack(self, assignments: Sequence[Assignment]) -> list[Outcome]:
        """Trains jobs at once. If memory runs out, trains two halves; if stacking or a job fails, trains each alone."""
        if self.fallback_reason(assignments[0]) is not None:
            return list(super().run(assignments))
        parts, failed = [assignments], list[Outcome]()
        try:
            return list(self._fit(assignments))
        except Unstackable as error:
            self._refused[assignments[0].payload.plan.train] = str(error)
        except Exception as error:
            if len(assignments) > 1 and isinstance(error, RuntimeError) and is_out_of_memory(error):
                half = len(assignments) // 2
                parts = [assignments[i : i + half] for i in range(0, len(assignments), half)]
            elif len(assignments) == 1:
                failed = [self.failure_policy.failure(assignments[0].payload.job, error)]
            else:
                if not isinstance(error, ClientTimeoutError):
                    # The next call raises the error if the first failure ends the run.
                    self.failure_policy.failure(assignments[0].payload.job, error)
                parts = []  # Train each job alone, to find out which one failed or took too long.
        # Called after the except block, because inside it the exception keeps the tensors of the failed fit alive.
        release_memory()
        if failed or not parts:
            return failed or list(super().run(assignments))
        if len(parts) > 1:
            self._halve(len(assignments), len(parts[0]))
        return [outcome for part in parts for outcome in self._train_stack(part)]

    def _halve(self, before: int, jobs: int) -> None:
        if self.jobs is None or jobs < self.jobs:
            _log.warning("out of memory with %d jobs at once; engine=batched goes on with %d", before, jobs)
            self._use_jobs(jobs)

    def set_jobs(self, jobs: int) -> None:
        """Sets the number of jobs at once. Rounding depends on it, so all processes must use the same number."""
        if jobs != self.jobs:
            self._use_jobs(jobs)

    def fallback_reason(self, assignment: Assignment) -> str | None:
        """Returns why jobs with this plan can't be stacked, and warns once. Returns None if they can be stacked."""
        train = assignment.payload.plan.train
        if train not in self._refused:
            try:
                check_stackable(self.local_trainer, train)
                return None
            except Unstackable as error:
                self._refused[train] = str(error)
        why = self._refused[train]
        if why not in self._warned:
            self._warned.add(why)
            _log.warning("engine=batched trains one job after another where %s train: %s", ", ".join(train), why)
        return why

    def _fit(self, assignments: Sequence[Assignment]) -> list[Result]:
        """Trains the jobs of the assignments in one stack, and returns the update and client state of each job."""
        with self._isolated():
            jobs, stack = self._stacked(assignments, self.local_trainer.evaluate)
            with self._frozen_weights_kept(assignments[0]), self._time_limit(len(assignments)):
                module = self._train(jobs, stack)
                for job, loss in zip(jobs, module.train_losses(len(jobs)), strict=True):
                    job.fit.close(job.callbacks)
                    job.metrics["fit/train_loss"] = loss
                return [self._result(job) for job in jobs]

    def _frozen_weights_kept(self, assignment: Assignment) -> AbstractContextManager[None]:
        # Not those of the adapter and the head: each job's are put into the module in turn.
        base = {name: self.local_trainer.parameters[name] for name in self.local_trainer.layout.names(["base"])}
        return self.local_trainer.frozen_weights.kept(assignment.payload.job[0], base)

    def _isolated(self) -> AbstractContextManager[None]:
        return isolated(self.local_trainer.module, self.local_trainer.parameters.values())

    def _time_limit(self, jobs: int) -> AbstractContextManager[None]:
        """Returns a context that limits the time of a fit of several jobs to the sum of the jobs' time limits.

        If the fit takes longer, each job is trained alone, with its own limit.
        """
        return time_limit(None if self.local_trainer.timeout is None else self.local_trainer.timeout * jobs)

    def seconds(self, assignments: Sequence[Assignment]) -> float:
        """Runs a short fit of these jobs, discards its result, and returns the seconds per step and job."""
        timer = autotune.StepTimer()
        with self._isolated(), self._time_limit(len(assignments)):
            self._train(*self._stacked(assignments, lambda dataset: {}), autotune.TIMED_STEPS, [timer])
        return timer.seconds / len(assignments)

    def _stacked(
        self, assignments: Sequence[Assignment], evaluate: Callable[[Dataset], dict[str, float]]
    ) -> tuple[list[StackedJob], Stack]:
        """Loads each job's received model, evaluates it with ``evaluate``, and stacks the models' tensors."""
        local_trainer, jobs = self.local_trainer, []
        for assignment in assignments:
            client, index = assignment.payload.job
            data, payload = self.clients[client].data[index], unpack_payload(assignment.payload, local_trainer.layout)
            seed_everything(assignment.seed, local_trainer.module.device)
            local_trainer.install(payload, assignment.private, data.head)
            tensors = {name: local_trainer.parameters[name].detach() for name in local_trainer.layout.names(TRAVELLING)}
            held_out = data.validation_set(local_trainer.settings.eval_examples)
            metrics = {f"distributed/{key}": value for key, value in evaluate(held_out).items()}
            start = {name: tensors[name] for name in local_trainer.layout.names(payload.plan.train)}
            fit = LocalFit(local_trainer.server_layout.for_head(data.head), payload, assignment.private, {}, start)
            jobs.append(StackedJob(fit, data, assignment.seed, tensors, metrics).measured_by(local_trainer))
        stack = Stack(
            local_trainer.module, local_trainer.layout, [job.tensors for job in jobs], assignments[0].payload.plan.train
        )
        for i, job in enumerate(jobs):
            for name in job.fit.start:
                job.fit.trained[name] = nn.Parameter(stack.part(i, name, stack.tensors[name].data))
            job.callbacks = local_trainer.recipe.callbacks(job.fit)
            job.check_callbacks()
        return jobs, stack

    def _train(
        self, jobs: Sequence[StackedJob], stack: Stack, max_steps: int | None = None, observers: Sequence[Callback] = ()
    ) -> StackedModule:
        stacked = self._module(jobs, stack, max_steps)
        with quiet(), single_process(), keyboard_interrupts_pass(), stack.computing():
            trainer = self.local_trainer.trainer(
                [JobCallbacks(jobs, stack, stacked.steps), *observers], [], max_epochs=1, accumulate_grad_batches=1
            )
            trainer.fit(stacked, stacked.steps)
        return stacked

    def _module(self, jobs: Sequence[StackedJob], stack: Stack, max_steps: int | None = None) -> StackedModule:
        """Returns the LightningModule that trains the stack. First verifies stacking, and sets the stack's shortcut."""
        local_trainer, settings = self.local_trainer, self.local_trainer.settings
        module = local_trainer.module
        assert isinstance(module, ClientModule)
        plan = jobs[0].fit.payload.plan
        steps = Steps(
            [local_trainer.loader(job.data.training_set, job.seed) for job in jobs], settings.accumulate,
            max_steps or plan.steps or settings.steps, settings.epochs or 1, self._padding(),
        )  # fmt: skip
        stacked, verified = StackedModule(module, stack, steps, settings.clip), jobs[:VERIFIED_JOBS]
        if self._verified_with.get(plan.train, 0) < len(verified):
            self._verified[plan.train] = verify_stacking(local_trainer, verified, stacked)
            self._verified_with[plan.train] = len(verified)
        stack.shortcut = self._verified[plan.train]
        return stacked

    def _result(self, job: StackedJob) -> Result:
        local_trainer = self.local_trainer
        held_out = job.data.validation_set(local_trainer.settings.eval_examples)
        job.load(local_trainer)
        job.metrics |= {f"fitted/{key}": value for key, value in local_trainer.evaluate(held_out).items()}
        return job.fit.update(len(job.data.train), job.metrics), job.fit.private_state(local_trainer.initial)

    def _tune(self, assignments: Sequence[Assignment]) -> None:
        """Chooses by timing how many jobs to stack. If only one can be stacked now, a later round chooses."""
        key = self._stack_key(assignments[0])
        alike = [assignment for assignment in assignments if self._stack_key(assignment) == key]
        if len(alike) < 2:
            return
        try:
            # Verify stacking now, so that no timed fit includes the verification.
            with self._isolated(), self._time_limit(VERIFIED_JOBS):
                self._module(*self._stacked(alike[:VERIFIED_JOBS], lambda dataset: {}), autotune.TIMED_STEPS)
            device = self.local_trainer.module.device
            jobs = autotune.best_jobs(lambda jobs: self.seconds(alike[:jobs]), len(alike), device)
        except Unstackable as error:
            self._refused[assignments[0].payload.plan.train] = str(error)
            self.fallback_reason(assignments[0])
            return
        except Exception as error:
            self.failure_policy.failure(alike[0].payload.job, error)  # raises error if the first failure ends the run
            return  # The jobs of this round are trained one after another. The next round repeats the timing.
        _log.info("engine=batched trains %d jobs at once", jobs)
        self._use_jobs(jobs)

    def _use_jobs(self, jobs: int) -> None:
        self.jobs = jobs
        self.on_settings(dataclasses.asdict(dataclasses.replace(self.settings, jobs=jobs)))

    def _stack_key(self, assignment: Assignment) -> tuple[str, str]:
        """Returns the plan and head of an assignment. Only assignments with equal plans and heads can be stacked."""
        client, index = assignment.payload.job
        return repr(assignment.payload.plan), self.clients[client].data[index].head

    def _padding(self) -> int:
        collate, config = self.local_trainer.collate, getattr(self.local_trainer.module.model, "config", None)
        if isinstance(collate, Collate):
            return collate.pad_token_id
        return getattr(config, "pad_token_id", None) or 0
