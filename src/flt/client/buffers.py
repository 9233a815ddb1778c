"""Buffers of the resident module, which differ between jobs, and the modes of its layers with running statistics."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flt.client.isolation import write
from flt.protocol.entries import buffers
from flt.protocol.layout import BUFFER, Layout

_log = logging.getLogger(__name__)


class ResidentBuffers:
    """Sets the buffers of the resident module before each fit, and finds those that a fit has changed.

    Args:
        module: The resident module.
        layout: Names and roles of the module's tensors.
    """

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self.module, self.layout = module, layout
        known, held = set(layout.names([BUFFER])), buffers(module)
        self.initial = {name: buffer.detach().cpu().clone() for name, buffer in held.items() if name in known}
        self._start: dict[str, Tensor] = dict(self.initial)
        self._has_warned = False
        self._norms = [(name, sub) for name, sub in module.named_modules() if isinstance(sub, _BatchNorm)]
        self._modes = {name: module.get_submodule(name).training for name in layout.statistics}

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Sets the buffers to these values by name, and all other buffers to their initial values."""
        self._start = {**self.initial, **{name: value for name, value in values.items() if name in self.initial}}
        for name, value in self._start.items():
            owner, _, own = name.rpartition(".")
            held = self.module.get_submodule(owner)._buffers
            buffer = held.get(own)
            if buffer is not None and _is_like(buffer, value):
                write(buffer, value)  # in place, because several layers may share a buffer
            else:
                held[own] = value.to(value.device if buffer is None else buffer.device, copy=True)

    def changed(self) -> dict[str, Tensor]:
        """Returns the buffers whose values differ from those of the last :meth:`put`, by name, on the CPU.

        Of a layer with running statistics, all or none are returned, because a mean belongs to its variance.
        A buffer that is new, or has got another shape or type, is left out: it is scratch space, which can't be
        averaged. A line says so once.
        """
        now = {name: buffer.detach().cpu() for name, buffer in buffers(self.module).items()}
        alike = {name: v for name, v in now.items() if name in self.initial and _is_like(v, self._start[name])}
        if (others := sorted(now.keys() - alike.keys())) and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s: a buffer that a fit makes, or gives another shape or type, is lost after the fit", others[0]
            )
        moved = {name for name, value in alike.items() if not _equal(value, self._start[name].cpu())}
        layers = {name.rpartition(".")[0] for name in moved} & set(self.layout.statistics)
        return {name: v.clone() for name, v in alike.items() if name in moved or name.rpartition(".")[0] in layers}

    def set_modes(self, train: Collection[str], frozen_in_eval: bool) -> None:
        """Puts the layers with running statistics into evaluation mode if none of their weights are trained.

        A layer without weights is trained if it lies in a head that is trained, or if the base is trained.

        Args:
            train: Roles of the tensors that are trained.
            frozen_in_eval: If False, every layer gets back the mode that it had at the start.
        """
        for name, mode in self._modes.items():
            self.module.get_submodule(name).training = mode and (not frozen_in_eval or self._is_trained(name, train))

    @property
    def uses_batches(self) -> str:
        """Name of a batch norm that is in training mode, which can't learn from a single example; empty without one."""
        return next((name for name, layer in self._norms if layer.training), "")

    def _is_trained(self, name: str, train: Collection[str]) -> bool:
        own = [f"{name}.{weight}" for weight, _ in self.module.get_submodule(name).named_parameters(recurse=False)]
        if own:
            return any(self.layout.entries[weight].role in train for weight in own)
        return "base" in train or ("head" in train and self.layout.in_head(name))


def _is_like(value: Tensor, start: Tensor) -> bool:
    return value.shape == start.shape and value.dtype == start.dtype


def _equal(value: Tensor, start: Tensor) -> bool:
    return torch.equal(value, start) or bool(((value == start) | ((value != value) & (start != start))).all())
