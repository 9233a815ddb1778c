"""Random generators around a fit."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from flt.client.isolation import isolated, seed_everything

DRAWS: dict[str, Callable[[], float]] = {
    "python": random.random,
    "numpy": lambda: float(np.random.rand()),
    "torch": lambda: float(torch.rand(())),
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("generator", DRAWS)
def test_a_seed_decides_what_each_global_generator_draws(generator: str) -> None:
    draw = DRAWS[generator]
    with isolated(torch.nn.Identity(), []):
        drawn = []
        for seed in (1, 1, 2):
            seed_everything(seed, CPU)
            drawn.append(draw())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("generator", DRAWS)
def test_a_fit_leaves_each_global_generator_as_it_was(generator: str) -> None:
    draw = DRAWS[generator]
    with isolated(torch.nn.Identity(), []):
        seed_everything(5, CPU)
        expected = draw()
        seed_everything(5, CPU)
        with isolated(torch.nn.Identity(), []):
            seed_everything(6, CPU)
            draw()
        assert draw() == expected


def test_a_fit_leaves_no_buffer_no_submodule_and_no_mode_behind() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Module())
    net[1].register_buffer("mean", net[0].running_mean)  # one buffer of two layers
    net[1].register_buffer("repeated", torch.zeros(1).expand(3))
    net[1].register_buffer("empty", None)
    net[1].later = None
    before = {name: buffer.clone() for name, buffer in net.named_buffers(remove_duplicate=False)}
    with isolated(net, []):
        net[0](torch.randn(4, 2))
        net[1].register_buffer("made", torch.ones(1), persistent=False)
        net[1].repeated = torch.ones(5)
        net[1].empty = torch.ones(1)
        net[1].later = nn.BatchNorm1d(3)
        net.extra = nn.Identity()
        net[0].num_batches_tracked.resize_(4)
        net.eval()
    after = dict(net.named_buffers(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert net[1].mean is net[0].running_mean
    assert net[1].later is None
    assert not hasattr(net, "extra")
    assert net.training
