"""Local trainer: trains one job after another on the resident module, which stays on its device.

    local_fit = install -> evaluate -> Trainer.fit -> evaluate -> collect

A job's only results are its update and its client state. No job affects the next: each install overwrites all
adapter and head weights and all buffers, and the frozen weights are checked after each fit. The frozen backbone is
neither copied nor moved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flt.client.buffers import ResidentBuffers
from flt.client.evaluator import Evaluator, Watch
from flt.client.fit import LocalFit
from flt.client.frozen_weights import FrozenWeights
from flt.client.isolation import isolated, seed_everything
from flt.client.leave_one_out import examples_of, losses_without
from flt.client.loader import loader
from flt.client.settings import LocalSettings
from flt.client.shared_logger import SharedLogger
from flt.client.users_code import UsersFit, attributes_kept, copies, users_code
from flt.core.quiet import keyboard_interrupts_pass, quiet
from flt.core.timeout import time_limit
from flt.data.clients import JobData
from flt.models.adapters.client_context import BatchNotifier, at_client
from flt.models.causal import CausalModule
from flt.models.module import ClientModule
from flt.protocol.layout import TRAVELLING, Layout
from flt.protocol.messages import BaseDelta, Ids, Payload, Update
from flt.protocol.quantised_components import unpack_payload
from flt.protocol.state import ClientState, ServerState, apply_change

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe


OWN_MODULES = (ClientModule, CausalModule)
"""flt's own modules. In their fits, nobody else's code runs, unless there are callbacks."""


class LocalTrainer(Evaluator):
    """Trains one job after another on one module: the resident module, which stays on its device.

    Args:
        module: The resident LightningModule, on its device and with its adapters attached.
        layout: Names and roles of the module's tensors.
        recipe: Recipe whose local callbacks take part in every fit.
        settings: Settings of the fits.
        base: Initial values of the frozen weights that the recipe may change.
        collate: Function that builds a batch from a list of examples. If None, torch's default is used.
        callbacks: The user's Lightning callbacks. Each fit gets its own copies of them.
        loggers: Loggers of the Trainer in every fit.
        root: Folder in which the user's callbacks may write. If None, Lightning uses the working directory.
        heads: Name of a head -> name of a tensor -> initial value. If None or empty, all jobs have the same head.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        layout: Layout,
        recipe: Recipe,
        settings: LocalSettings,
        base: Mapping[str, Tensor],
        collate: Callable[[list[Any]], Any] | None = None,
        callbacks: Sequence[pl.Callback] = (),
        loggers: Sequence[SharedLogger] = (),
        root: Path | None = None,
        heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__(module, settings, collate, loggers, root)
        self.layout, self.recipe, self.base, self.heads = layout, recipe, base, heads or {}
        self.server_layout = layout.with_heads(self.heads)
        self.initial_heads = {
            at: value for name, own in self.heads.items() for at, value in self.server_layout.split(own, name).items()
        }
        self.callbacks = callbacks
        self.frozen_weights = FrozenWeights(module, foreign=bool(callbacks) or type(module) not in OWN_MODULES)
        self.timeout: float | None = None  # largest duration of a fit in seconds; no limit if None
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        held = [*layout.names(TRAVELLING), *sorted(layout.local)]
        self.initial = {name: self.parameters[name].detach().cpu().clone() for name in held}
        self.base_version = 0
        # A user's module that is in training mode isn't changed: parts of it may be in eval mode on purpose.
        if not module.training or self.own_module:
            module.train()  # from_pretrained returns a model in eval mode
        self.buffers = ResidentBuffers(module, layout)

    def local_fit(self, data: JobData, payload: Payload, private: ClientState, seed: int) -> tuple[Update, ClientState]:
        """Trains one job. Returns the job's update and its new client state.

        Args:
            data: Examples of the job.
            payload: The server's message to the job.
            private: Client state that the job stored after its last fit.
            seed: Seed of the batches, dropout and augmentation of this fit.

        Raises:
            InputError: The fit took no step.
            ModuleError: The fit changed a weight that isn't trained, or Lightning refuses the module or a callback.
            ClientTimeoutError: The fit took longer than ``timeout``.
        """
        payload = unpack_payload(payload, self.layout)
        with isolated(self.module, self.parameters.values()), at_client(self.client_aware, data):
            seed_everything(seed, self.module.device)
            self.install(payload, private, data.head)
            with attributes_kept(self.module), self.frozen_weights.kept(payload.job[0], self.parameters):
                return self._evaluate_and_fit(data, payload, private, seed)

    def _evaluate_and_fit(
        self, data: JobData, payload: Payload, private: ClientState, seed: int
    ) -> tuple[Update, ClientState]:
        held_out = data.validation_set(self.settings.eval_examples)
        metrics = {f"distributed/{key}": value for key, value in self.evaluate(held_out).items()}
        fit = self._prepare(payload, private, data.head)
        fit.losses_without = functools.partial(self.losses_without, data, payload.held)
        seed_everything(seed, self.module.device)  # again, so that the evaluation above doesn't affect the fit
        try:
            with time_limit(self.timeout):
                metrics |= self._train(fit, data, held_out, seed)
                metrics |= {f"fitted/{key}": value for key, value in self.evaluate(held_out).items()}
            return fit.update(len(data.train), metrics), fit.private_state(self.initial)
        finally:
            self._restore_base(fit)

    def install(self, payload: Payload, private: ClientState, head: str = "") -> None:
        """Loads a job's model into the module, updates the base weights, and sets which parameters are trained.

        Args:
            payload: The server's message to the job.
            private: The job's client state.
            head: Name of the job's head; empty if all jobs have the same head.
        """
        payload = unpack_payload(payload, self.layout)
        self.apply_base(payload.base, payload.base_version)
        initial = {**self.initial, **self.server_layout.joined(self.initial_heads, head)}
        own = {name: private.tensors.get(name, initial[name]) for name in self.layout.private(payload.plan)}
        self.put(
            {**payload.tensors, **{name: self.layout.take(name, full, payload.held) for name, full in own.items()}}
        )
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self.layout.entries[name].role in payload.plan.train)
        self.buffers.put({**payload.buffers, **private.buffers})
        self.buffers.set_modes(payload.plan.train, self.recipe.buffers.frozen_in_eval)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the values of parameters. The number of components of a LoRA factor may change."""
        for name, tensor in tensors.items():
            parameter = self.parameters[name]
            parameter.grad = None
            parameter.data = tensor.to(device=parameter.device, dtype=parameter.dtype, copy=True)

    def apply_base(self, deltas: Sequence[BaseDelta], version: int) -> None:
        """Brings the base weights to a base version. Skips deltas that have already been applied."""
        for delta in deltas:
            if delta.version <= self.base_version:
                continue
            new = {}
            for name, change in delta.tensors.items():
                parameter = self.parameters[name]
                # Computed on the CPU, like on the server, so that clients and server get bit-identical weights.
                new[name] = apply_change(parameter.detach().cpu(), change).to(parameter.device)
            for name, value in new.items():  # in a second loop, so that no weight has changed if memory runs out above
                self.parameters[name].data = value
            self.base_version = delta.version
        self.base_version = max(self.base_version, version)

    def load(self, state: ServerState, gid: int, head: str = "") -> None:
        """Loads the global model of one group, reduced to the active components, into the module.

        Args:
            state: The server's state.
            gid: Id of the group.
            head: Name of the head to load, if jobs have different heads. If empty, the module keeps its present head.
        """
        self._catch_up(state)
        self.put({name: self.initial[name] for name in self.layout.local})
        self.put(self.server_layout.model(state.groups[gid].weights, state.active, head))
        self.buffers.put(state.groups[gid].buffers)

    def evaluate_group(
        self, state: ServerState, gid: int, dataset: Dataset, watch: Watch | None = None, head: str = ""
    ) -> dict[str, float]:
        """Returns the metrics that ``validation_step`` logs for the global model of one group.

        Args:
            state: The server's state.
            gid: Id of the group.
            dataset: The examples.
            watch: Called after each batch with the number of finished batches and the number of all batches.
            head: Name of the head to load, if jobs have different heads. If empty, the module keeps its present head.
        """
        self.load(state, gid, head)
        with isolate_rng():
            return self.evaluate(dataset, watch)

    def evaluate_payload(
        self, state: ServerState, payload: Payload, private: ClientState, dataset: Dataset, watch: Watch | None = None,
        head: str = "",
    ) -> dict[str, float]:  # fmt: skip
        """Returns the metrics that ``validation_step`` logs for the model that a job receives.

        Args:
            state: The server's state from which the payload was built.
            payload: The server's message to the job.
            private: The job's client state.
            dataset: The examples.
            watch: Called after each batch with the number of finished batches and the number of all batches.
            head: Name of the job's head; empty if all jobs have the same head.
        """
        self._catch_up(state)  # the payload has the base deltas that the client lacks; this module may lack others
        self.install(payload, private, head)
        with isolate_rng():
            return self.evaluate(dataset, watch)

    def losses_without(
        self, data: JobData, held: Mapping[str, Ids], source: str, examples: int
    ) -> tuple[float, dict[str, Tensor]]:
        """Returns the loss of the resident module on a job's examples, and the losses without each held component.

        Args:
            data: The job's data.
            held: Layer -> ids of the components that the module has.
            source: ``held_out`` or ``train``.
            examples: Largest number of examples.
        """
        return losses_without(self, self.layout, held, examples_of(data, source, examples))

    def _catch_up(self, state: ServerState) -> None:
        self.apply_base(state.base.since(self.base_version, self.base), state.base.version)

    def _prepare(self, payload: Payload, private: ClientState, head: str = "") -> LocalFit:
        trained = {name: parameter for name, parameter in sorted(self.parameters.items()) if parameter.requires_grad}
        start = {name: parameter.detach().clone() for name, parameter in trained.items()}
        return LocalFit(self.server_layout.for_head(head), payload, private, trained, start)

    def _train(self, fit: LocalFit, data: JobData, held_out: Dataset, seed: int) -> dict[str, float]:
        local = self.recipe.callbacks(fit)
        batches = self.placement.shard(self.loader(data.training_set, seed))
        # A user's callbacks and schedules may need validation metrics during a fit; flt's own module needs none.
        foreign = self.frozen_weights.foreign
        validates = foreign and len(held_out) > 0  # type: ignore[arg-type]  # has a length
        validation = self.loader(held_out, None) if validates else None
        # BatchNotifier is left out if no module needs it, because it costs seven calls in each step.
        own: list[pl.Callback] = [BatchNotifier(self.client_aware)] if self.client_aware else []
        own += [*self.placement.callbacks(), *([UsersFit(validates)] if foreign else [])]
        with quiet(), self.placement.context(), keyboard_interrupts_pass(), users_code(self.module):
            trainer = self.trainer(
                [*own, *local, *copies(self.callbacks)],
                list(self.loggers),
                self.placement,
                **self.settings.length(fit.payload.plan),
            )
            trainer.fit(self.module, batches, validation)
        fit.take_buffers(self.placement.agreed(self.buffers.changed()), self.recipe.buffers)
        fit.steps = trainer.global_step
        for logger in self.loggers:
            logger.step += fit.steps
        fit.close(local)
        return {f"fit/{key}": float(value) for key, value in trainer.callback_metrics.items() if value.numel() == 1}

    def loader(self, dataset: Dataset, seed: int | None) -> DataLoader:
        """Returns a data loader, without training batches that are too small for the module's batch norms."""
        norm = "" if seed is None else self.buffers.uses_batches
        return loader(dataset, self.settings, self.collate, seed, norm, 2 * self.placement.parts)

    def _restore_base(self, fit: LocalFit) -> None:
        """Undoes the fit's changes of the base weights, because the next install doesn't overwrite them."""
        for name, start in fit.start.items():
            if self.layout.entries[name].role not in TRAVELLING:
                self.parameters[name].data = start
