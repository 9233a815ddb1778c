"""Names, shapes and types of the tensors in safetensors files, and checks of them before any tensor is created."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from flt.core.errors import InputError

FLOATS = ("F32", "F16", "BF16", "F64")
"""Types of numbers that are loaded into a floating-point tensor. Types in none of the lists are refused."""
OTHERS = {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
"""Types of numbers that are loaded only into a tensor of the same type."""
RARE = {"I16": torch.int16, "I8": torch.int8, "C64": torch.complex64}
"""Types that only a tensor of a user's own module may have, such as a table of complex numbers."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Names, shapes and types of the tensors in safetensors files, from the headers alone. No tensor is read.

    Attributes:
        files: The files.
        shapes: Name of a tensor -> its shape.
        kinds: Name of a tensor -> its type, as safetensors writes it, such as ``F32``.
    """

    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]

    @classmethod
    def of(cls, *files: Path) -> Header:
        """Reads the headers. safetensors refuses a header whose tensors aren't exactly the rest of the file.

        Raises:
            InputError: A file is incomplete, or is no safetensors file.
        """
        shapes, kinds = {}, {}
        for path in files:
            try:
                with safetensors.safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118  # the file is no mapping
                        part = file.get_slice(name)
                        shapes[name], kinds[name] = tuple(part.get_shape()), part.get_dtype()
            except safetensors.SafetensorError as error:
                why = f"{path.name} is cut off or damaged"
                raise InputError.of("folder", path.parent, "a folder with complete safetensors files", why) from error
        return cls(files, shapes, kinds)

    @property
    def numbers(self) -> int:
        """Total number of elements in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def load(self) -> dict[str, Tensor]:
        """Returns all tensors, by name."""
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            with safetensors.safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # as above
        return tensors

    def check_types(self, integers: Collection[str]) -> None:
        """Checks that all tensors are floating-point numbers, except those whose names end with one of these parts.

        Raises:
            InputError: A tensor has another type.
        """
        for name, kind in self.kinds.items():
            others = OTHERS.values() if name.rpartition(".")[2] in integers else ()
            if not _fits(kind, torch.float32, *others):
                raise InputError.of("weights", f"{name} of type {kind}", f"the types {', '.join(FLOATS)}")

    def check(self, folder: Path, wanted: Mapping[str, Tensor], needed: Iterable[str]) -> None:
        """Compares the files with the tensors of a model.

        Args:
            folder: Folder of the export, for the message.
            wanted: Tensors that the files may have, by name. Their values don't matter.
            needed: Names of the tensors that the files must have.

        Raises:
            InputError: A tensor is missing, strange, or has another shape or type.
        """
        if lacking := sorted(set(needed) - set(self.shapes)):
            raise InputError.of("folder", folder, "the tensors of its adapter and head", f"{lacking[0]} is missing")
        for name, shape in self.shapes.items():
            if name not in wanted:
                raise InputError.of("folder", folder, "tensors of its model", f"{name} is none")
            model = wanted[name]
            if shape != tuple(model.shape):
                why = f"size mismatch for {name}: its shape is {shape}"
                raise InputError.of("folder", folder, f"the shape {tuple(model.shape)}", why)
            kind = self.kinds[name]
            if not _fits(kind, model.dtype):
                raise InputError.of("folder", folder, f"a type for {model.dtype}", f"{name} has the type {kind}")


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns a module's parameters and the buffers of its state dict, under all of their names.

    A user's own version of ``state_dict`` isn't called: it may leave out the backbone, or add what isn't a tensor.
    """
    found: dict[str, Tensor] = {}
    for prefix, sub in module.named_modules(remove_duplicate=False):
        hidden = sub._non_persistent_buffers_set
        own = {**sub._parameters, **{name: buffer for name, buffer in sub._buffers.items() if name not in hidden}}
        found |= {f"{prefix}.{name}" if prefix else name: value for name, value in own.items() if value is not None}
    return found


def _fits(kind: str, *dtypes: torch.dtype) -> bool:
    """Returns whether numbers of a file's type can be loaded into a tensor of at least one of these types."""
    return any(kind in FLOATS if dtype.is_floating_point else (OTHERS | RARE).get(kind) == dtype for dtype in dtypes)


def check_numbers(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses numbers that are NaN or infinite as float32.

    Raises:
        InputError: A tensor has such a number.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.to(torch.float32).isfinite().all():
            why = f"{name} has numbers that aren't finite in float32"
            raise InputError.of("folder", folder, "finite numbers", why)
