"""The loss of batches with examples of several tasks, beside separate heads in plain torch."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flt.data.examples import OUTPUTS
from flt.models.module import ClientModule, Optimizer

WIDTHS, FEATURES, STEPS = (5, 2, 3), 6, 25
STARTS = (0, 5, 7)


class Model(nn.Module):
    """A body and a head whose rows are those of all tasks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, sum(WIDTHS))

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(torch.tanh(self.body(x))))


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, task of each example, and label within its task. The last task is missing in two batches of three."""
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        tasks = torch.randint(0, 3 if step % 3 == 0 else 2, (8,), generator=generator)
        labels = torch.stack([torch.randint(0, WIDTHS[int(task)], (), generator=generator) for task in tasks])
        found.append((torch.randn(8, FEATURES, generator=generator), tasks, labels))
    return found


def tagged(x: Tensor, tasks: Tensor, labels: Tensor) -> dict[str, Tensor]:
    first = torch.tensor(STARTS)[tasks]
    return {"x": x, "labels": labels + first, OUTPUTS: torch.stack([first, first + torch.tensor(WIDTHS)[tasks]], 1)}


def test_a_joint_head_trains_as_separate_heads_with_adamw() -> None:
    """A head without an example in a batch has a gradient of zero. AdamW still decays its weights, as any other's."""
    module = ClientModule(Model(), sum(WIDTHS), Optimizer("adamw", lr=0.02, weight_decay=0.1), several_tasks=True)
    reference = Model()
    pairs = zip(reference.head.weight.split(WIDTHS), reference.head.bias.split(WIDTHS), strict=True)
    heads = [[nn.Parameter(part.detach().clone()) for part in pair] for pair in pairs]
    parameters = [*reference.body.parameters(), *(part for head in heads for part in head)]
    ours = module.configure_optimizers()
    theirs = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)
    for x, tasks, labels in batches():
        ours.zero_grad()
        module._loss(tagged(x, tasks, labels))[0].backward()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        features = torch.tanh(reference.body(x))
        losses = [
            F.cross_entropy(F.linear(row, *heads[int(task)]), label)
            for row, task, label in zip(features, tasks, labels, strict=True)
        ]
        torch.stack(losses).mean().backward()
        model = module.model
        torch.testing.assert_close(model.head.weight.grad, torch.cat([head[0].grad for head in heads]))  # type: ignore[union-attr, arg-type]  # a linear layer
        ours.step()
        theirs.step()
    torch.testing.assert_close(module.model.head.weight, torch.cat([head[0] for head in heads]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.model.body.weight, reference.body.weight, rtol=1e-4, atol=1e-5)


def test_an_example_is_given_a_class_of_its_own_task() -> None:
    module = ClientModule(Model(), sum(WIDTHS), Optimizer(), several_tasks=True)
    x, tasks, labels = batches()[0]
    chosen = module._loss(tagged(x, tasks, labels))[1].argmax(-1)
    logits = module.model(x).logits
    for row, task, found in zip(logits, tasks, chosen, strict=True):
        first = STARTS[int(task)]
        assert int(found) == first + int(row[first : first + WIDTHS[int(task)]].argmax())


def test_a_batch_without_tags_has_the_bits_of_the_plain_logits() -> None:
    module = ClientModule(Model(), sum(WIDTHS), Optimizer())
    x, _, labels = batches()[0]
    loss, logits = module._loss({"x": x, "labels": labels})
    assert torch.equal(logits, module.model(x).logits)
    assert torch.equal(loss, F.cross_entropy(module.model(x).logits, labels))
