"""Names, roles and pair ids of a module's tensors: what lets every part be written once for all adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.protocol.messages import Ids

LORA_FACTORS = ("A", "B")
"""Roles that have a rank axis."""
TRAVELLING = ("A", "B", "adapter", "head")
"""Roles that a server holds; everything else is the base, which changes by versioned deltas."""
MARK = "#"
"""Between the name of a head's tensor and its variant."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the module."""

    role: str
    """``A``, ``B``, ``adapter``, ``head`` or ``base``."""
    shape: tuple[int, ...]
    """Its shape at the initial rank."""
    layer: str = ""
    """The adapted layer that a pair's tensor belongs to."""
    axis: int | None = None
    """The rank axis: 0 for A (r, in), 1 for B (out, r)."""
    variant: str = ""
    """Which head it is of, where jobs have different ones: ``head.weight#5`` on the server is their ``head.weight``."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One adapted layer, W = W0 + scale B A."""

    rank: int
    """Initial rank r: pair ids are 0 .. r - 1."""
    scale: float
    """alpha / r of the initial rank, on every client and in every round."""
    base: str
    """Name of W0."""
    a: str
    b: str
    transposed: bool = False
    """W0 is stored (in, out), as in GPT-2's Conv1D."""

    def stored(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of a change (out, n) and (n, in), in the order and shape in which W0 is stored."""
        return (right.T.contiguous(), left.T.contiguous()) if self.transposed else (left, right)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Name -> role, layer and rank axis of every parameter of a module."""

    entries: Mapping[str, Entry]
    layers: Mapping[str, Layer]

    @staticmethod
    def of(module: nn.Module, head: Iterable[str] = ()) -> Layout:
        """Reads the layout of a module that holds peft LoRA layers.

        Args:
            module: A module with its adapters attached.
            head: Names of the modules that are trained whole.
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
        """The server's layout where jobs have different heads: each of them, as ``name#variant``.

        Args:
            heads: Variant -> name -> initial value; empty where there is one head: nothing changes.

        Raises:
            InputError: The head isn't among what travels.
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
        """The layout as a job with this head knows it: its module's names, nothing of the other heads."""
        if not any(entry.variant for entry in self.entries.values()):
            return self
        own = {name: entry for name, entry in self.entries.items() if entry.variant in ("", head)}
        return Layout({_plain(name, e): dataclasses.replace(e, variant="") for name, e in own.items()}, self.layers)

    def at(self, name: str, head: str) -> str:
        """The server's name of a tensor of a job with this head."""
        varied = f"{name}{MARK}{head}"
        return varied if varied in self.entries else name

    def model(self, weights: Mapping[str, Tensor], components: Mapping[str, Ids], head: str = "") -> dict[str, Tensor]:
        """A group's tensors under the names of a module with this head, gathered by pair id."""
        return {
            _plain(name, self.entries[name]): self.take(name, full, components)
            for name, full in weights.items()
            if self.entries[name].variant in ("", head)
        }

    def names(self, roles: Iterable[str]) -> list[str]:
        """Names of the tensors with one of these roles, in name order."""
        wanted = set(roles)
        return sorted(name for name, entry in self.entries.items() if entry.role in wanted)

    def all_components(self) -> dict[str, Ids]:
        """Layer -> all of its pair ids."""
        return {name: tuple(range(layer.rank)) for name, layer in self.layers.items()}

    def ids(self, name: str, components: Mapping[str, Ids]) -> Ids | None:
        """The pair ids that concern a tensor; None where it has no rank axis."""
        entry = self.entries[name]
        return None if entry.axis is None else components[entry.layer]

    def take(self, name: str, full: Tensor, components: Mapping[str, Ids]) -> Tensor:
        """Gathers rows (A) or columns (B) of a tensor at full rank by pair id: a copy."""
        ids = self.ids(name, components)
        return full.clone() if ids is None else full.index_select(self.axis(name), _index(ids, full))

    def put(self, name: str, full: Tensor, components: Mapping[str, Ids], part: Tensor) -> Tensor:
        """The tensor at full rank with these pairs replaced: a copy."""
        ids = self.ids(name, components)
        if ids is None:
            return part.clone()
        return full.index_copy(self.axis(name), _index(ids, full), part.to(full.dtype))

    def mask(self, name: str, components: Mapping[str, Ids], like: Tensor) -> Tensor:
        """True where an entry belongs to these pairs; of a shape that broadcasts with the tensor at full rank."""
        ids = self.ids(name, components)
        if ids is None:
            return torch.ones((1,) * like.dim(), dtype=torch.bool, device=like.device)
        shape = [1] * like.dim()
        shape[self.axis(name)] = like.shape[self.axis(name)]
        flags = torch.zeros(shape[self.axis(name)], dtype=torch.bool, device=like.device)
        flags[_index(ids, like)] = True
        return flags.view(shape)

    def shape(self, name: str, components: Mapping[str, Ids]) -> tuple[int, ...]:
        """Shape of a tensor that is gathered by these pairs."""
        shape = list(self.entries[name].shape)
        ids = self.ids(name, components)
        if ids is not None:
            shape[self.axis(name)] = len(ids)
        return tuple(shape)

    def axis(self, name: str) -> int:
        """The rank axis of a pair's tensor."""
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
