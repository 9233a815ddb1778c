"""Headers of safetensors files: names, shapes and types, compared with a model before a tensor is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flt.core.errors import InputError
from flt.export.weights import Header, check_numbers, state_of

MODEL = {"w": torch.zeros(2, 3), "ids": torch.zeros(4, dtype=torch.int64)}


def test_a_header_has_the_tensors_of_all_files(tmp_path: Path) -> None:
    parts = {"a": {"w": torch.ones(2, 3, dtype=torch.bfloat16)}, "b": {"ids": torch.arange(4)}}
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    header = Header.of(tmp_path / "a", tmp_path / "b")
    assert header.shapes == {"w": (2, 3), "ids": (4,)}
    assert header.kinds == {"w": "BF16", "ids": "I64"}
    assert header.numbers == 10
    assert torch.equal(header.load()["ids"], torch.arange(4))
    header.check(tmp_path, MODEL, MODEL)


def header(w: tuple[int, ...] = (2, 3), kind: str = "F32", ids: str = "I64", **more: str) -> Header:
    shapes = {"w": w, "ids": (4,)} | dict.fromkeys(more, (1,))
    return Header((), shapes, {"w": kind, "ids": ids, **more})


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
def test_floating_point_numbers_of_every_width_fit_a_weight(kind: str) -> None:
    header(kind=kind).check(Path("folder"), MODEL, MODEL)
    header(kind=kind, ids="F32").check_types(())


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (header(w=(3, 2)), r"size mismatch for w: its shape is \(3, 2\); allowed is the shape \(2, 3\)"),
        (header(w=(2,)), "size mismatch for w"),
        (header(kind="I64"), "w has the type I64"),
        (header(kind="F8_E4M3"), "w has the type F8_E4M3"),
        (header(ids="I32"), "ids has the type I32"),
        (header(ids="F32"), "ids has the type F32"),
        (header(strange="F32"), "strange is none"),
        (Header((), {"w": (2, 3)}, {"w": "F32"}), "ids is missing"),
    ],
)
def test_another_tensor_shape_or_type_is_refused(held: Header, why: str) -> None:
    with pytest.raises(InputError, match=why):
        held.check(Path("folder"), MODEL, MODEL)


def test_a_tensor_that_is_not_needed_may_be_missing() -> None:
    Header((), {"w": (2, 3)}, {"w": "F32"}).check(Path("folder"), MODEL, ["w"])


@pytest.mark.parametrize(
    ("kind", "integers", "allowed"),
    [
        ("I64", ("ids",), True), ("BOOL", ("ids",), True), ("F32", ("ids",), True), ("I64", ("other",), False),
        ("I8", ("ids",), False), ("I64", (), False), ("F8_E5M2", ("ids",), False),
    ],
)  # fmt: skip
def test_only_tensors_of_certain_names_may_hold_integers(kind: str, integers: tuple[str, ...], allowed: bool) -> None:
    held = Header((), {"bert.ids": (4,)}, {"bert.ids": kind})
    if allowed:
        held.check_types(integers)
        return
    with pytest.raises(InputError, match=f"weights=bert.ids of type {kind}"):
        held.check_types(integers)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e39])
def test_numbers_that_are_not_finite_in_float32_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="w has numbers that aren't finite"):
        check_numbers(Path("folder"), {"w": torch.tensor([0.0, value], dtype=torch.float64)})


def test_integers_and_finite_numbers_are_accepted() -> None:
    check_numbers(Path("folder"), {"w": torch.tensor([3e38], dtype=torch.float64), "ids": torch.arange(3)})


def test_the_state_of_a_module_has_all_names_of_each_tensor_and_nothing_else() -> None:
    class Own(nn.Linear):
        def state_dict(self, *_: Any, **__: Any) -> Any:
            return {}

        def get_extra_state(self) -> Any:
            return "text"

    net = nn.Sequential(Own(2, 2), nn.BatchNorm1d(2))
    net.append(net[0])
    net.register_buffer("cache", torch.zeros(1), persistent=False)
    net.register_buffer("empty", None)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(state_of(net)) == ["0.weight", "0.bias", *(f"1.{name}" for name in norm), "2.weight", "2.bias"]
