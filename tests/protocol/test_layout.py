"""Names, roles and pair ids, against NumPy's indexing and modules whose tensors are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import SIZES, layout_of
from peft import LoraConfig, get_peft_model
from torch import nn
from toys import Toy, toy_module
from transformers.pytorch_utils import Conv1D

from flt.models.adapters.lora import LoraSettings, attach
from flt.protocol.layout import Layout

NAMES = ("x.A", "x.B", "y.A", "y.B")
Pairs = dict[str, tuple[int, ...]]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, Pairs]:
    rank = draw(st.integers(1, 6))
    ids = st.lists(st.integers(0, rank - 1), unique=True).map(lambda found: tuple(sorted(found)))
    return layout_of(rank), {name: draw(ids) for name in SIZES}


def index_of(layout: Layout, name: str, pairs: Pairs) -> tuple[slice | list[int], ...]:
    """NumPy's index of the pairs: rows of A (r, in), columns of B (out, r)."""
    ids = list(pairs[name[0]])
    return (ids,) if name.endswith("A") else (slice(None), ids)


def random_of(layout: Layout, name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).normal(size=layout.entries[name].shape)


@given(layouts(), st.sampled_from(NAMES))
def test_take_is_numpys_indexing(made: tuple[Layout, Pairs], name: str) -> None:
    layout, pairs = made
    full = random_of(layout, name)
    found = layout.take(name, torch.tensor(full), pairs)
    assert np.array_equal(found.numpy(), full[index_of(layout, name, pairs)])
    assert tuple(found.shape) == layout.shape(name, pairs)


@given(layouts(), st.sampled_from(NAMES))
def test_put_is_numpys_assignment_on_a_copy(made: tuple[Layout, Pairs], name: str) -> None:
    layout, pairs = made
    full = torch.tensor(random_of(layout, name))
    before, part = full.clone(), torch.randn(layout.shape(name, pairs), dtype=torch.float64)
    expected = full.numpy().copy()
    expected[index_of(layout, name, pairs)] = part.numpy()
    assert np.array_equal(layout.put(name, full, pairs, part).numpy(), expected)
    assert torch.equal(full, before)


@given(layouts(), st.sampled_from(NAMES))
def test_mask_is_true_where_put_writes(made: tuple[Layout, Pairs], name: str) -> None:
    layout, pairs = made
    full = torch.zeros(layout.entries[name].shape)
    written = layout.put(name, full, pairs, torch.ones(layout.shape(name, pairs))).bool()
    mask = layout.mask(name, pairs, full)
    assert torch.equal(mask.expand_as(full), written)


@given(layouts(), st.sampled_from(NAMES))
def test_taking_what_was_put_gives_it_back(made: tuple[Layout, Pairs], name: str) -> None:
    layout, pairs = made
    part = torch.randn(layout.shape(name, pairs))
    put = layout.put(name, torch.zeros(layout.entries[name].shape), pairs, part)
    assert torch.equal(layout.take(name, put, pairs), part)


def test_a_tensor_without_a_rank_axis_is_taken_put_and_masked_whole() -> None:
    layout, pairs = layout_of(), {"x": (1,), "y": ()}
    full, part = torch.randn(2, 3), torch.randn(2, 3)
    taken, put = layout.take("head", full, pairs), layout.put("head", full, pairs, part)
    assert torch.equal(taken, full)
    assert torch.equal(put, part)
    assert taken.data_ptr() != full.data_ptr()
    assert put.data_ptr() != part.data_ptr()
    assert bool(layout.mask("head", pairs, full).expand_as(full).all())
    assert layout.shape("head", pairs) == (2, 3)
    assert layout.ids("head", pairs) is None


def test_a_part_takes_the_dtype_of_the_whole() -> None:
    layout, part = layout_of(), torch.ones(2, 4, dtype=torch.float64)
    assert layout.put("x.A", torch.zeros(4, 4), {"x": (0, 3)}, part).dtype == torch.float32


# ---------------------------------------------------------------------------------------------- reading a module


def test_roles_layers_and_axes_of_a_module_with_lora() -> None:
    module, layout = toy_module(rank=4)
    found = {name: (entry.role, entry.layer, entry.axis, entry.shape) for name, entry in layout.entries.items()}
    assert found == {
        "fc1.base_layer.weight": ("base", "", None, (8, 6)),
        "fc1.base_layer.bias": ("base", "", None, (8,)),
        "fc1.lora_A.default.weight": ("A", "fc1", 0, (4, 6)),
        "fc1.lora_B.default.weight": ("B", "fc1", 1, (8, 4)),
        "fc2.base_layer.weight": ("base", "", None, (10, 8)),
        "fc2.base_layer.bias": ("base", "", None, (10,)),
        "fc2.lora_A.default.weight": ("A", "fc2", 0, (4, 8)),
        "fc2.lora_B.default.weight": ("B", "fc2", 1, (10, 4)),
        "head.weight": ("head", "", None, (3, 10)),
        "head.bias": ("head", "", None, (3,)),
    }
    assert set(found) == {name for name, _ in module.named_parameters()}
    assert layout.all_components() == {"fc1": (0, 1, 2, 3), "fc2": (0, 1, 2, 3)}


def test_names_of_some_roles_are_in_name_order() -> None:
    layout = toy_module()[1]
    assert layout.names(("head", "B")) == [
        "fc1.lora_B.default.weight", "fc2.lora_B.default.weight", "head.bias", "head.weight",
    ]  # fmt: skip
    assert layout.names(()) == []


@pytest.mark.parametrize(("rank", "alpha"), [(2, 8.0), (4, 2.0), (3, 3.0)])
def test_scale_is_alpha_over_the_initial_rank_and_gives_the_forward_pass(rank: int, alpha: float) -> None:
    module = Toy()
    layer = attach(module, LoraSettings(rank=rank, alpha=alpha, target_modules=["fc1"]), 0).layers["fc1"]
    named = dict(module.named_parameters())
    nn.init.normal_(named[layer.b])
    x = torch.randn(5, 6)
    weight = named[layer.base] + alpha / rank * named[layer.b] @ named[layer.a]
    assert layer.scale == alpha / rank
    assert layer.rank == rank
    torch.testing.assert_close(module.fc1(x), nn.functional.linear(x, weight, named["fc1.base_layer.bias"]))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.plain, self.head = Conv1D(9, 3), nn.Linear(9, 3), nn.Linear(3, 2)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
def test_the_base_of_gpt2s_conv1d_is_transposed_and_that_of_linear_is_not() -> None:
    layout = attach(Transposed(), LoraSettings(rank=2, target_modules=["c_attn", "plain"]), 0)
    assert {name: layer.transposed for name, layer in layout.layers.items()} == {"c_attn": True, "plain": False}
    assert layout.entries["c_attn.base_layer.weight"].shape == (3, 9)
    assert layout.entries["c_attn.lora_A.default.weight"].shape == (2, 3)
    assert layout.entries["c_attn.lora_B.default.weight"].shape == (9, 2)


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.header = nn.Linear(2, 2), nn.Linear(2, 2)
        self.tail = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.scale = nn.Parameter(torch.zeros(1))


def test_head_is_what_lies_under_its_names_and_the_rest_is_what_trains() -> None:
    entries = Layout.of(Headed(), ["head", "tail.1"]).entries
    assert {name for name, entry in entries.items() if entry.role == "head"} == {
        "head.weight", "head.bias", "tail.1.weight", "tail.1.bias",
    }  # fmt: skip
    assert entries["header.weight"].role == entries["scale"].role == "adapter"
    assert entries["frozen"].role == "base"


class Wrapped(nn.Module):
    """A module whose user has put peft on it, with a head that peft trains whole."""

    def __init__(self) -> None:
        super().__init__()
        config = LoraConfig(r=3, lora_alpha=6, target_modules=["fc1"], modules_to_save=["head"])
        self.net = get_peft_model(Toy(), config)


def test_a_module_that_holds_peft_layers_keeps_them_and_its_whole_head() -> None:
    module = Wrapped()
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in module.named_parameters()}
    layout = attach(module, LoraSettings(rank=8, alpha=99.0), 0)
    assert {name: (layer.rank, layer.scale) for name, layer in layout.layers.items()} == {
        "net.base_model.model.fc1": (3, 2.0)
    }
    assert layout.names(("head",)) == [
        f"net.base_model.model.head.modules_to_save.default.{part}" for part in ("bias", "weight")
    ]
    assert layout.names(("A", "B")) == [f"net.base_model.model.fc1.lora_{part}.default.weight" for part in "AB"]
    assert layout.names(("adapter",)) == []
    for name, parameter in module.named_parameters():
        trains, value = before[name]
        assert parameter.requires_grad == trains
        assert torch.equal(parameter, value)


def named_adapter(module: nn.Module) -> nn.Module:
    return get_peft_model(module, LoraConfig(r=2, target_modules=["fc1"]), adapter_name="mine")


@pytest.mark.parametrize("wrap", [named_adapter], ids=["an adapter of another name"])
def test_layers_are_found_by_their_active_adapter(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer = Layout.of(wrap(Toy())).layers["base_model.model.fc1"]
    assert layer.a == "base_model.model.fc1.lora_A.mine.weight"
    assert layer.base == "base_model.model.fc1.base_layer.weight"
