"""Buffers of the resident module, and the modes of its norms."""

from __future__ import annotations

import torch
from torch import nn

from flt.client.buffers import ResidentBuffers
from flt.protocol.layout import Layout

FULL = ("base", "head")


def module() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    made.register_buffer("table", torch.tensor([1.0, torch.nan]))
    made.register_buffer("cache", torch.zeros(1), persistent=False)
    return made


def test_what_a_fit_changed_is_found_by_value_and_put_gives_everything_else_its_initial_value() -> None:
    net = module()
    held = ResidentBuffers(net, Layout.of(net))
    assert held.changed() == {}, "nan equals itself here"
    net(torch.randn(5, 3))
    net.cache.add_(1)
    net.table.copy_(net.table.clone())
    changed = held.changed()
    assert sorted(changed) == [
        f"{i}.{name}" for i in (1, 2) for name in ("num_batches_tracked", "running_mean", "running_var")
    ]
    assert torch.equal(changed["1.running_mean"], net[1].running_mean)
    held.put({"1.running_mean": torch.full((4,), 7.0), "unknown": torch.ones(1)})
    assert net[1].running_mean.tolist() == [7.0] * 4
    assert net[1].running_var.tolist() == [1.0] * 4
    assert int(net[2].num_batches_tracked) == 0
    assert held.changed() == {}
    net(torch.randn(5, 3))
    assert not torch.equal(held.initial["1.running_mean"], net[1].running_mean), "initial values are copies"


def test_of_a_norm_all_statistics_are_found_if_one_has_changed() -> None:
    net = module()
    held = ResidentBuffers(net, Layout.of(net))
    net[1](torch.zeros(5, 4))  # the mean stays 0
    assert sorted(held.changed()) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]


def test_a_buffer_of_another_shape_or_type_is_scratch_space() -> None:
    net = module()
    held = ResidentBuffers(net, Layout.of(net))
    net.table = torch.zeros(3)
    net[1].running_mean = net[1].running_mean.double() + 1
    assert held.changed() == {}
    held.put({})
    assert net.table.shape == (2,)
    assert net[1].running_mean.dtype == torch.float32


def test_norms_are_in_training_mode_exactly_where_their_weights_train() -> None:
    net = module().requires_grad_(False)
    held = ResidentBuffers(net, Layout.of(net, head=["2"]))
    for frozen_in_eval, train, modes in (
        (True, FULL, (True, True)),
        (True, ("A", "head"), (False, True)),
        (True, ("A",), (False, False)),
        (False, ("A",), (True, True)),
    ):
        held.set_modes(train, frozen_in_eval)
        assert (net[1].training, net[2].training) == modes
        assert held.uses_batches == ("1" if modes[0] else "2" if modes[1] else "")


def test_a_norm_that_its_user_put_into_evaluation_mode_stays_there() -> None:
    net = module().requires_grad_(False)
    net[1].eval()
    held = ResidentBuffers(net, Layout.of(net))
    held.set_modes(FULL, frozen_in_eval=True)
    assert not net[1].training
    assert net[2].training
