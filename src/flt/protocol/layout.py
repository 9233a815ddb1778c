"""Layout of a module: a table with the role, shape, layer and rank axis of each tensor.

Code that selects tensors by this table works for every adapter.

Jobs can have different heads, for example for different numbers of classes. The server then holds the tensors of every
head. The server's name of such a tensor ends in the name of the head, called the variant: ``head.weight#5`` is the
tensor ``head.weight`` of the head named ``5``.

A job with several tasks has a joint head, whose name is the names of its tasks' heads with ``+`` between them. Its rows
are those of these heads, one head below the other. The server never holds a joint head: it puts one together for a
payload, and takes the one of an update apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.protocol.entries import Entry, Layer, buffers, is_lora, lies_in, lora_layer, role_of
from flt.protocol.messages import Ids, Plan

LORA_FACTORS = ("A", "B")
"""Roles of the tensors that have a rank axis: LoRA's factors A and B."""
TRAVELLING = ("A", "B", "adapter", "head")
"""Roles of the tensors that the server holds for each group of jobs: those of the adapter and the head.

All other tensors are base weights. The server sends only the changes of base weights, as ``BaseDelta``.
"""
BUFFER = "buffer"
"""Role of the buffers in a module's state dict, such as the running statistics of a batch norm."""
MEAN, VARIANCE = "running_mean", "running_var"
"""Names of a layer's running statistics: torch's norms have them, and so do most norms of others."""
MARK = "#"
"""Separator in server names between the name of a tensor and the name of its head, as in ``head.weight#5``."""
JOIN = "+"
"""Separator in the name of a joint head between the names of the heads that it consists of, as in ``mrpc+sst2``."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Description, by name, of every parameter and buffer of a module, and of every layer with LoRA."""

    entries: Mapping[str, Entry]
    layers: Mapping[str, Layer]
    head: tuple[str, ...] = ()
    """Names of the submodules that form the head."""
    statistics: tuple[str, ...] = ()
    """Names of the layers with running statistics, such as batch norms."""
    local: frozenset[str] = frozenset()
    """Names of parameters that stay on the client in every plan, such as those of a local batch norm."""

    @staticmethod
    def of(module: nn.Module, head: Iterable[str] = ()) -> Layout:
        """Builds the layout of a module. Only peft's layers count as LoRA layers.

        Args:
            module: Module with its adapters attached.
            head: Names of the submodules that form the head, which is trained in full.
        """
        layers = {name: lora_layer(name, sub) for name, sub in module.named_modules() if is_lora(sub)}
        components = {layer.a: ("A", name, 0) for name, layer in layers.items()}
        components |= {layer.b: ("B", name, 1) for name, layer in layers.items()}
        head = tuple(head)
        entries = {name: Entry(BUFFER, tuple(b.shape), dtype=b.dtype) for name, b in buffers(module).items()}
        for name, parameter in module.named_parameters():
            role, layer, axis = components.get(name, (role_of(name, parameter, head), "", None))
            entries[name] = Entry(role, tuple(parameter.shape), layer, axis)
        statistics = tuple(name for name, sub in module.named_modules() if sub._buffers.get(MEAN) is not None)
        return Layout(entries, layers, head, statistics)

    def with_heads(self, heads: Mapping[str, Mapping[str, Tensor]]) -> Layout:
        """Returns the server's layout, in which every tensor of every head has its own entry ``name#variant``.

        Args:
            heads: Name of the head (the variant) -> name of the tensor -> initial value. If empty, all jobs have
                the same head, and the result equals this layout.

        Raises:
            InputError: A tensor in ``heads`` doesn't have the role ``head`` in this layout. This happens with
                ``adapter.head=none``, for example.
        """
        varied = {name for tensors in heads.values() for name in tensors}
        if varied - set(self.names(["head"])):
            why = "tasks with heads of their own send them"
            raise InputError.of("adapter.head", "none", "the model's classifier, or heads=shared", why)
        entries = {name: entry for name, entry in self.entries.items() if name not in varied}
        for variant, tensors in heads.items():
            for name, value in tensors.items():
                entries[f"{name}{MARK}{variant}"] = Entry("head", tuple(value.shape), variant=variant)
        return dataclasses.replace(self, entries=entries)

    def for_head(self, head: str) -> Layout:
        """Returns the layout of a module with this head.

        Tensors have their names in the module here, not their server names. Tensors of other heads are left out.
        """
        if not any(entry.variant for entry in self.entries.values()):
            return self
        heads, found = self.heads_of(head), dict[str, Entry]()
        for name, entry in self.entries.items():
            if not entry.variant:
                found[name] = entry
            elif entry.variant in heads:
                plain = _plain(name, entry)
                rows = entry.shape[0] + (found[plain].shape[0] if plain in found else 0)
                found[plain] = dataclasses.replace(entry, variant="", shape=(rows, *entry.shape[1:]))
        return dataclasses.replace(self, entries=found)

    def heads_of(self, head: str) -> tuple[str, ...]:
        """Returns the names of the heads that a job's head consists of, in the order of their rows.

        There are several for a joint head, and none if the name is empty, because all jobs have the same head.
        """
        if not head or any(entry.variant == head for entry in self.entries.values()):
            return (head,) if head else ()
        return tuple(head.split(JOIN))

    def server_names(self, name: str, head: str) -> list[str]:
        """Returns the server's names for the tensor that is called ``name`` in a module with this head.

        There are several only for the output layer of a joint head: one for each head that it consists of.
        """
        varied = [f"{name}{MARK}{own}" for own in self.heads_of(head)]
        return varied if varied and varied[0] in self.entries else [name]

    def joined(self, tensors: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
        """Returns the server's tensors under their names in a module with this head, without those of other heads.

        The rows of a joint head are put together. Rows of a head that is missing in ``tensors`` are zeros, as in a slot
        of a head that no job has trained yet.
        """
        heads, found = self.heads_of(head), dict[str, Tensor]()
        for name, tensor in tensors.items():
            entry = self.entries.get(name)
            if entry is None or not entry.variant:
                found[name] = tensor
            elif entry.variant in heads and (plain := _plain(name, entry)) not in found:
                places = self.server_names(plain, head)
                parts = [tensors[at] if at in tensors else tensor.new_zeros(self.entries[at].shape) for at in places]
                found[plain] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found

    def split(self, tensors: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
        """Returns the tensors of a module with this head under the server's names. Takes a joint head apart."""
        found = dict[str, Tensor]()
        for name, tensor in tensors.items():
            places = self.server_names(name, head)
            parts = tensor.split([self.entries[at].shape[0] for at in places]) if len(places) > 1 else [tensor]
            found |= {at: part.clone() if len(places) > 1 else part for at, part in zip(places, parts, strict=True)}
        return found

    def model(self, weights: Mapping[str, Tensor], components: Mapping[str, Ids], head: str = "") -> dict[str, Tensor]:
        """Returns a group's tensors for a module with this head.

        Args:
            weights: The group's tensors at the initial rank, under the server's names.
            components: Layer -> ids of the components to which A and B are reduced.
            head: Name of the head; empty if all jobs have the same head.

        Returns:
            The tensors under the module's names, without the tensors of other heads.
        """
        return {
            name: self.take(name, full, components) if name in self.entries else full.clone()  # heads have no rank axis
            for name, full in self.joined(weights, head).items()
        }

    def names(self, roles: Iterable[str]) -> list[str]:
        """Returns the sorted names of the tensors that have one of these roles."""
        wanted = set(roles)
        return sorted(name for name, entry in self.entries.items() if entry.role in wanted)

    def sent(self, plan: Plan) -> list[str]:
        """Returns the sorted names of the tensors that a client trains and sends in a round with this plan."""
        return [name for name in self.names(set(plan.train) - set(plan.private)) if name not in self.local]

    def private(self, plan: Plan) -> list[str]:
        """Returns the sorted names of the tensors that a round with this plan takes from the client's own state."""
        return sorted({*self.names(plan.private), *self.local})

    def in_head(self, name: str) -> bool:
        """Returns whether a tensor or module lies in the head."""
        return lies_in(name, self.head)

    def all_components(self) -> dict[str, Ids]:
        """Returns the ids of all components of each layer."""
        return {name: tuple(range(layer.rank)) for name, layer in self.layers.items()}

    def ids(self, name: str, components: Mapping[str, Ids]) -> Ids | None:
        """Returns the ids that ``components`` lists for a tensor's layer, or None if the tensor has no rank axis."""
        entry = self.entries[name]
        return None if entry.axis is None else components[entry.layer]

    def take(self, name: str, full: Tensor, components: Mapping[str, Ids]) -> Tensor:
        """Returns a copy of ``full``, reduced to these components. ``full`` has the initial rank.

        The copy of A contains only these components' rows, and the copy of B only their columns. Other tensors are
        copied in full.
        """
        ids = self.ids(name, components)
        return full.clone() if ids is None else full.index_select(self.axis(name), _index(ids, full))

    def put(self, name: str, full: Tensor, components: Mapping[str, Ids], part: Tensor) -> Tensor:
        """Returns a copy of ``full`` in which ``part`` replaces these components. ``full`` has the initial rank.

        For a tensor without a rank axis, returns a copy of ``part``.
        """
        ids = self.ids(name, components)
        if ids is None:
            return part.clone()
        return full.index_copy(self.axis(name), _index(ids, full), part.to(full.dtype))

    def mask(self, name: str, components: Mapping[str, Ids], like: Tensor) -> Tensor:
        """Returns a boolean mask that is True at the rows of A, or columns of B, of these components.

        The mask broadcasts with ``like``, a tensor of the initial rank. If the tensor has no rank axis, the
        mask is True everywhere.
        """
        ids = self.ids(name, components)
        if ids is None:
            return torch.ones((1,) * like.dim(), dtype=torch.bool, device=like.device)
        shape = [1] * like.dim()
        shape[self.axis(name)] = like.shape[self.axis(name)]
        flags = torch.zeros(shape[self.axis(name)], dtype=torch.bool, device=like.device)
        flags[_index(ids, like)] = True
        return flags.view(shape)

    def shape(self, name: str, components: Mapping[str, Ids]) -> tuple[int, ...]:
        """Returns the shape of a tensor after :meth:`take` has reduced it to these components."""
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
