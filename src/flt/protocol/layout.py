"""Names, roles and component ids of a module's tensors. With them, one implementation serves all adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.protocol.messages import Ids

LORA_FACTORS = ("A", "B")
"""Roles of the tensors that have a rank axis."""
TRAVELLING = ("A", "B", "adapter", "head")
"""Roles of the tensors that the server holds. All other tensors are base weights, which change by versioned deltas."""
MARK = "#"
"""Separator between the name of a head's tensor and its variant."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the module."""

    role: str
    """``A``, ``B``, ``adapter``, ``head`` or ``base``."""
    shape: tuple[int, ...]
    """Shape at the initial rank."""
    layer: str = ""
    """Name of the adapted layer; set only for A and B."""
    axis: int | None = None
    """Rank axis: 0 for A (r, in), 1 for B (out, r), None for other tensors."""
    variant: str = ""
    """Name of the head if jobs have several heads: ``head.weight#5`` on the server is ``head.weight`` in the module."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One adapted layer, W = W0 + scale B A."""

    rank: int
    """Initial rank r. Component ids are 0 .. r - 1."""
    scale: float
    """alpha / r for the initial rank r; the same on every client and in every round."""
    base: str
    """Name of W0."""
    a: str
    b: str
    transposed: bool = False
    """True if W0 is stored as (in, out), as in GPT-2's Conv1D."""

    def stored(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the factors (out, n) and (n, in) of a change in the order and shape in which W0 is stored."""
        return (right.T.contiguous(), left.T.contiguous()) if self.transposed else (left, right)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Role, layer and rank axis of every parameter of a module, by name."""

    entries: Mapping[str, Entry]
    layers: Mapping[str, Layer]

    @staticmethod
    def of(module: nn.Module, head: Iterable[str] = ()) -> Layout:
        """Builds the layout of a module with LoRA layers of peft.

        Args:
            module: Module with its adapters attached.
            head: Names of the submodules that are trained in full.
        """
        layers = {name: _layer(name, sub) for name, sub in module.named_modules() if _is_lora(sub)}
        components = {layer.a: ("A", name, 0) for name, layer in layers.items()}
        components |= {layer.b: ("B", name, 1) for name, layer in layers.items()}
        entries = {}
        for name, parameter in module.named_parameters():
            role, layer, axis = components.get(name, (_role(name, parameter, tuple(head)), "", None))
            entries[name] = Entry(role, tuple(parameter.shape), layer, axis)
        return Layout(entries, layers)

    def with_heads(self, heads: Mapping[str, Mapping[str, Tensor]]) -> Layout:
        """Returns the server's layout if jobs have different heads: one entry ``name#variant`` for each head.

        Args:
            heads: Variant -> name -> initial value. Empty if all jobs have the same head; then nothing changes.

        Raises:
            InputError: A tensor of a head doesn't have the role head.
        """
        varied = {name for tensors in heads.values() for name in tensors}
        if varied - set(self.names(["head"])):
            why = "tasks with heads of their own send them"
            raise InputError.of("adapter.head", "none", "the model's classifier, or heads=shared", why)
        entries = {name: entry for name, entry in self.entries.items() if name not in varied}
        for variant, tensors in heads.items():
            for name, value in tensors.items():
                entries[f"{name}{MARK}{variant}"] = Entry("head", tuple(value.shape), variant=variant)
        return Layout(entries, self.layers)

    def for_head(self, head: str) -> Layout:
        """Returns the layout of the module of a job with this head: without variants and without other heads."""
        if not any(entry.variant for entry in self.entries.values()):
            return self
        own = {name: entry for name, entry in self.entries.items() if entry.variant in ("", head)}
        return Layout({_plain(name, e): dataclasses.replace(e, variant="") for name, e in own.items()}, self.layers)

    def server_name(self, name: str, head: str) -> str:
        """Returns the server's name of a tensor of a job with this head."""
        varied = f"{name}{MARK}{head}"
        return varied if varied in self.entries else name

    def model(self, weights: Mapping[str, Tensor], components: Mapping[str, Ids], head: str = "") -> dict[str, Tensor]:
        """Returns a group's tensors under the names in a module with this head, gathered by component id."""
        return {
            _plain(name, self.entries[name]): self.take(name, full, components)
            for name, full in weights.items()
            if self.entries[name].variant in ("", head)
        }

    def names(self, roles: Iterable[str]) -> list[str]:
        """Returns the sorted names of the tensors that have one of these roles."""
        wanted = set(roles)
        return sorted(name for name, entry in self.entries.items() if entry.role in wanted)

    def all_components(self) -> dict[str, Ids]:
        """Returns all component ids of each layer."""
        return {name: tuple(range(layer.rank)) for name, layer in self.layers.items()}

    def ids(self, name: str, components: Mapping[str, Ids]) -> Ids | None:
        """Returns the component ids of a tensor's layer, or None if the tensor has no rank axis."""
        entry = self.entries[name]
        return None if entry.axis is None else components[entry.layer]

    def take(self, name: str, full: Tensor, components: Mapping[str, Ids]) -> Tensor:
        """Returns a copy of a tensor at full rank, reduced to the rows (A) or columns (B) of these components."""
        ids = self.ids(name, components)
        return full.clone() if ids is None else full.index_select(self.axis(name), _index(ids, full))

    def put(self, name: str, full: Tensor, components: Mapping[str, Ids], part: Tensor) -> Tensor:
        """Returns a copy of a tensor at full rank in which ``part`` replaces these components."""
        ids = self.ids(name, components)
        if ids is None:
            return part.clone()
        return full.index_copy(self.axis(name), _index(ids, full), part.to(full.dtype))

    def mask(self, name: str, components: Mapping[str, Ids], like: Tensor) -> Tensor:
        """Returns a mask that is True for these components and broadcasts with the tensor at full rank."""
        ids = self.ids(name, components)
        if ids is None:
            return torch.ones((1,) * like.dim(), dtype=torch.bool, device=like.device)
        shape = [1] * like.dim()
        shape[self.axis(name)] = like.shape[self.axis(name)]
        flags = torch.zeros(shape[self.axis(name)], dtype=torch.bool, device=like.device)
        flags[_index(ids, like)] = True
        return flags.view(shape)

    def shape(self, name: str, components: Mapping[str, Ids]) -> tuple[int, ...]:
        """Returns the shape of a tensor that is reduced to these components."""
        shape = list(self.entries[name].shape)
        ids = self.ids(name, components)
        if ids is not None:
            shape[self.axis(name)] = len(ids)
        return tuple(shape)

    def axis(self, name: str) -> int:
        """Returns the rank axis of A or B."""
        axis = self.entries[name].axis
        assert axis is not None
        return axis


def _plain(name: str, entry: Entry) -> str:
    return name.removesuffix(f"{MARK}{entry.variant}") if entry.variant else name


def _index(ids: Ids, like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=like.device)


def _is_lora(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) and any(name in module.lora_A for name in module.active_adapters)


def _layer(name: str, module: nn.Module) -> Layer:
    assert isinstance(module, LoraLayer)
    adapter = next(adapter for adapter in module.active_adapters if adapter in module.lora_A)
    return Layer(
        rank=module.r[adapter],
        scale=float(module.scaling[adapter]),
        base=f"{name}.base_layer.weight",
        a=f"{name}.lora_A.{adapter}.weight",
        b=f"{name}.lora_B.{adapter}.weight",
        transposed=bool(getattr(module, "fan_in_fan_out", False)),
    )


def _role(name: str, parameter: nn.Parameter, head: tuple[str, ...]) -> str:
    if any(name == module or name.startswith(f"{module}.") for module in head):
        return "head"
    return "adapter" if parameter.requires_grad else "base"
