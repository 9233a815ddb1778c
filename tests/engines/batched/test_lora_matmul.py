"""Tests of what each job's LoRA adds in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flt.engines.batched.lora_matmul import LowRank

JOBS, RANK, IN, OUT, SCALE = 3, 2, 5, 4, 0.5


def by_autograd(out: Tensor, x: Tensor, a: Tensor, b: Tensor, counts: tuple[int, ...]) -> Tensor:
    parts = zip(out.split(counts), x.split(counts), a, b, strict=True)
    return torch.cat([o + SCALE * i @ own.T @ other.T for o, i, own, other in parts])


@pytest.mark.parametrize("counts", [(2, 2, 2), (1, 4, 3)])
@pytest.mark.parametrize("first_layer", [False, True])
def test_values_and_gradients_are_those_of_each_job_alone(counts: tuple[int, ...], first_layer: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, out = drawn(sum(counts), IN), drawn(sum(counts), OUT)
    a, b, seen = (
        drawn(JOBS, RANK, IN).requires_grad_(),
        drawn(JOBS, OUT, RANK).requires_grad_(),
        drawn(sum(counts), OUT),
    )
    if not first_layer:
        x.requires_grad_()
        out.requires_grad_()
    wanted = [its for its in (out, x, a, b) if its.requires_grad]
    expected = by_autograd(out, x, a, b, counts)
    gradients = torch.autograd.grad((expected * seen).sum(), wanted)
    for own in (counts, None) if len(set(counts)) == 1 else (counts,):
        found = LowRank.apply(out.clone(), x, a, b, SCALE, own)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * seen).sum(), wanted), gradients)


def test_a_frozen_factor_gets_no_gradient() -> None:
    a, b = torch.randn(1, RANK, IN), torch.randn(1, OUT, RANK, requires_grad=True)
    LowRank.apply(torch.zeros(3, OUT), torch.randn(3, IN), a, b, SCALE, None).sum().backward()
    assert a.grad is None
    assert b.grad is not None


@pytest.mark.parametrize("counts", [None, (2, 4)])
def test_a_layer_without_living_pairs_adds_nothing_and_its_input_has_the_frozen_gradient_alone(
    counts: tuple[int, ...] | None,
) -> None:
    x, out = torch.randn(6, IN, requires_grad=True), torch.randn(6, OUT, requires_grad=True)
    a, b = torch.zeros(2, 0, IN, requires_grad=True), torch.zeros(2, OUT, 0, requires_grad=True)
    found = LowRank.apply(out.clone(), x, a, b, SCALE, counts)
    assert torch.equal(found, out)
    of_x, of_out, *of_pairs = torch.autograd.grad(found.sum(), [x, out, a, b])
    assert torch.equal(of_x, torch.zeros(6, IN))
    assert torch.equal(of_out, torch.ones(6, OUT))
    assert [its.shape for its in of_pairs] == [a.shape, b.shape]
