"""Random generators around a fit."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

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
