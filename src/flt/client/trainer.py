"""A site: one resident module on one device, on which jobs are trained one after another.

    local_fit = install -> evaluate -> Trainer.fit -> evaluate -> collect

A job leaves nothing behind but its update and its client's private state: weights are put in anew by every install,
buffers are put back, and the frozen backbone is never copied nor moved.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flt.algorithm.recipe import Recipe
from flt.client.fit import LocalFit
from flt.client.placement import OneDevice
from flt.client.resident import NoSignals
from flt.client.settings import LocalSettings
from flt.client.shared_logger import SharedLogger
from flt.core.quiet import cached_entry_points, keyboard_interrupts_pass, quiet, single_process, without_fast_path
from flt.core.timeout import time_limit
from flt.data.clients import JobData
from flt.data.samplers import Shuffled, SimilarLengths, lengths_of
from flt.models.adapters.client_context import BatchNotifier, at_client, client_aware_modules
from flt.models.module import ClientModule
from flt.protocol.layout import TRAVELLING, Layout
from flt.protocol.messages import BaseDelta, Payload, Update
from flt.protocol.packing import opened_payload
from flt.protocol.state import ClientState, apply_change


class LocalTrainer:
    """One resident module, and what training a job on it takes.

    Args:
        module: The LightningModule with its adapters attached, on its device.
        layout: Names and roles of its tensors.
        recipe: Whose local callbacks take part in every fit.
        settings: Length and manner of the fits.
        base: The initial values of the frozen weights that the recipe may change.
        collate: Builds a batch from a list of examples; None: torch's default.
        callbacks: The user's Lightning callbacks; each fit gets copies of its own.
        loggers: What a module finds as its loggers inside a fit.
        root: Where the user's callbacks may write; None: nowhere.
        heads: Variant -> the head's initial values by name, where jobs have different heads.
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
        self.module, self.layout, self.recipe, self.settings = module, layout, recipe, settings
        self.base, self.heads = base, heads or {}
        self.served = layout.with_heads(self.heads)  # the server's layout
        self.collate, self.callbacks, self.loggers, self.root = collate, callbacks, loggers, root
        self.place = OneDevice()
        self.timeout: float | None = None  # seconds that the training of a job may take
        self.client_aware = client_aware_modules(module)
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        self.initial = {name: self.parameters[name].detach().cpu().clone() for name in layout.names(TRAVELLING)}
        self.base_version = 0
        if not module.training or isinstance(module, ClientModule):
            module.train()  # from_pretrained and an earlier fit leave eval mode; parts that a user froze stay so

    def local_fit(self, data: JobData, payload: Payload, private: ClientState, seed: int) -> tuple[Update, ClientState]:
        """Trains one job.

        Args:
            data: The job's examples.
            payload: What the server sent.
            private: What stayed on the client from its last fit.
            seed: Of the batches, dropout and augmentation of this fit.

        Raises:
            InputError: The fit took no step.
            ClientTimeoutError: It took longer than ``timeout``.
        """
        payload = opened_payload(payload, self.layout)
        with self.leaving_no_trace(), at_client(self.client_aware, data):
            self.seed(seed)
            self.install(payload, private, data.head)
            held_out = data.validation_set(self.settings.eval_examples)
            metrics = {f"distributed/{key}": value for key, value in self.evaluate(held_out).items()}
            fit = self._prepare(payload, private, data.head)
            self.seed(seed)  # anew, so that what was evaluated before doesn't matter
            try:
                with time_limit(self.timeout):
                    metrics |= self._train(fit, data, held_out, seed)
                    metrics |= {f"fitted/{key}": value for key, value in self.evaluate(held_out).items()}
                return fit.update(len(data.train), metrics), fit.private_state(self.initial)
            finally:
                self._restore_base(fit)

    def install(self, payload: Payload, private: ClientState, head: str = "") -> None:
        """Puts a job's model into the module: base versions, public tensors, private tensors, what trains.

        Args:
            payload: What the server sent.
            private: What stayed on the client.
            head: Which head the job has, where jobs have different ones.
        """
        payload = opened_payload(payload, self.layout)
        self.apply_base(payload.base, payload.base_version)
        initial = {**self.initial, **self.heads.get(head, {})}
        own = {name: private.tensors.get(name, initial[name]) for name in self.layout.names(payload.plan.private)}
        self.put(
            {**payload.tensors, **{name: self.layout.take(name, full, payload.held) for name, full in own.items()}}
        )
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self.layout.entries[name].role in payload.plan.train)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts tensors in the place of parameters; a pair's tensor may have fewer pairs than the one before."""
        for name, tensor in tensors.items():
            parameter = self.parameters[name]
            parameter.grad = None
            parameter.data = tensor.to(device=parameter.device, dtype=parameter.dtype, copy=True)

    def apply_base(self, deltas: Sequence[BaseDelta], version: int) -> None:
        """Brings the frozen weights to a version; the versions that they already have are skipped."""
        for delta in deltas:
            if delta.version <= self.base_version:
                continue
            new = {}
            for name, change in delta.tensors.items():
                parameter = self.parameters[name]
                # on the CPU, as the server does it: the same operations, so the same bits
                new[name] = apply_change(parameter.detach().cpu(), change).to(parameter.device)
            for name, value in new.items():  # all of a version or nothing: memory may not suffice
                self.parameters[name].data = value
            self.base_version = delta.version
        self.base_version = max(self.base_version, version)

    def evaluate(self, dataset: Dataset, watch: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """What the module's ``validation_step`` logs over a data set; nothing where it has none, or no examples.

        Args:
            dataset: The examples.
            watch: Told after each batch how many of how many are done.
        """
        if _size(dataset) == 0 or not _overrides(self.module, "validation_step"):
            return {}

        def tell(trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, done: int, *_: int) -> None:
            if watch is not None:
                watch(done + 1, int(trainer.num_val_batches[0]))

        with quiet(), single_process(), keyboard_interrupts_pass(), without_fast_path():
            trainer = self.trainer([LambdaCallback(on_validation_batch_end=tell)], [])
            results = trainer.validate(self.module, self.loader(dataset, None), verbose=False)
        return {key: float(value) for key, value in results[0].items()}

    def _prepare(self, payload: Payload, private: ClientState, head: str = "") -> LocalFit:
        trains = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        trained = {name: self.parameters[name] for name in sorted(trains)}
        start = {name: parameter.detach().clone() for name, parameter in trained.items()}
        return LocalFit(self.served.for_head(head), payload, private, trained, start)

    def _train(self, fit: LocalFit, data: JobData, held_out: Dataset, seed: int) -> dict[str, float]:
        own = self.recipe.callbacks(fit)
        users = copy.deepcopy(list(self.callbacks))
        loader = self.place.share(self.loader(data.training_set, seed))
        # a user's callbacks and schedules may want figures inside a fit, flt's own module doesn't
        wanted = _size(held_out) > 0 and not isinstance(self.module, ClientModule)
        during = self.loader(held_out, None) if wanted else None
        telling = (
            [BatchNotifier(self.client_aware)] if self.client_aware else []
        )  # a callback costs each step seven calls
        with quiet(), self.place.around(), keyboard_interrupts_pass():
            trainer = self.trainer(
                [*telling, *self.place.callbacks(), *own, *users],
                list(self.loggers),
                self.place,
                **self.settings.length(fit.payload.plan),
            )
            trainer.fit(self.module, loader, during)
        fit.steps = trainer.global_step
        for logger in self.loggers:
            logger.step += fit.steps
        fit.close(own)
        return {f"fit/{key}": float(value) for key, value in trainer.callback_metrics.items() if value.numel() == 1}

    def _restore_base(self, fit: LocalFit) -> None:
        """Takes back what a fit did to the base, which isn't put in anew by the next install."""
        for name, start in fit.start.items():
            if self.layout.entries[name].role not in TRAVELLING:
                self.parameters[name].data = start

    def trainer(
        self,
        callbacks: list[pl.Callback],
        loggers: list[SharedLogger],
        place: OneDevice | None = None,
        **length: int,
    ) -> pl.Trainer:
        """A fresh, quiet Trainer: a used one would train no step, since ``fit`` doesn't reset its progress.

        Args:
            callbacks: Its own.
            loggers: What the module finds as its loggers.
            place: Where it runs; None: on the module's device.
            length: The Trainer's arguments that say how long the fit is; they may set others anew.
        """
        with cached_entry_points():
            trainer = pl.Trainer(
                accelerator=self.module.device.type if self.module.device.type != "cuda" else "gpu",
                precision=self.settings.precision,  # type: ignore[arg-type]  # a config's string
                logger=loggers or False,
                callbacks=callbacks,
                gradient_clip_val=self.settings.clip,
                enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                inference_mode=not self.place.together,  # what is put together in it could be used nowhere else
                log_every_n_steps=1 if loggers else None,  # fits are shorter than Lightning's interval of 50
                default_root_dir=self.root,
                **{"accumulate_grad_batches": self.settings.accumulate, **length},  # type: ignore[arg-type]  # integers
                **(place or OneDevice()).arguments(self.module),
            )
        trainer._signal_connector = NoSignals()  # type: ignore[assignment]  # Lightning has no setting for it
        return trainer

    def loader(self, dataset: Dataset, seed: int | None) -> DataLoader:
        """A loader over a data set: shuffled by the seed; without one in order, or from the shortest to the longest."""
        settings, lengths = self.settings, lengths_of(dataset)
        if seed is None:
            order = None if lengths is None else np.argsort(lengths, kind="stable").tolist()
            return DataLoader(dataset, settings.eval_batch_size, sampler=order, collate_fn=self.collate)
        if lengths is None or settings.length_window == 1:
            sampler = Shuffled(_size(dataset), seed)
            return DataLoader(dataset, settings.batch_size, sampler=sampler, collate_fn=self.collate)
        batches = SimilarLengths(lengths, settings.batch_size, settings.length_window, seed)
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.collate)

    def seed(self, seed: int) -> None:
        """Seeds every global generator that a fit may draw from."""
        torch.default_generator.manual_seed(seed)
        if self.module.device.type != "cpu":
            torch.manual_seed(seed)  # of each device; a millisecond even where there is none
        random.seed(seed)
        np.random.seed(seed % 2**32)

    @contextlib.contextmanager
    def leaving_no_trace(self) -> Iterator[None]:
        """The module's buffers, its modes and the global generators are after a job what they were before."""
        kept = [(sub, _copied(sub._buffers), sub.training) for sub in self.module.modules()]
        with isolate_rng():
            try:
                yield
            finally:
                for sub, buffers, training in kept:
                    sub._buffers.update(buffers)
                    sub.training = training
                for parameter in self.parameters.values():
                    parameter.grad = None


def _copied(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}


def _size(dataset: Dataset) -> int:
    return len(dataset)  # type: ignore[arg-type]  # torch's base class has no length, a map-style one has


def _overrides(module: pl.LightningModule, method: str) -> bool:
    return getattr(type(module), method) is not getattr(pl.LightningModule, method)
