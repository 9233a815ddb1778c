"""LoRA and its training in plain torch: what the hand-written loop and every peer train, so that all train the same.

Imports torch and transformers alone: the peers' environments hold no flt and no peft.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

TARGETS = ("query", "value")
HEAD = "classifier"


@dataclasses.dataclass(frozen=True)
class Hyper:
    """What a client trains with.

    Attributes:
        rank: r of every adapted layer.
        alpha: LoRA's scale is alpha / r.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
    """

    rank: int
    alpha: float
    lr: float
    weight_decay: float


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: x W0^T + b + (alpha / r) x A^T B^T.

    Args:
        base: The frozen layer.
        rank: r.
        scale: alpha / r.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features))  # (r, in_features)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))  # (out_features, r)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale


def encoder(config: Mapping[str, object], frozen: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A BERT with a classification head, from its configuration and weights by transformers' names."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**config))
    if frozen is not None:
        model.load_state_dict(dict(frozen))
    return model


def attach(model: nn.Module, hyper: Hyper) -> dict[str, nn.Parameter]:
    """Freezes a model, puts LoRA on query and value, and returns what trains: name -> parameter, by name."""
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        parent, _, own = name.rpartition(".")
        if own in TARGETS:
            setattr(model.get_submodule(parent), own, LoraLinear(layer, hyper.rank, hyper.alpha / hyper.rank))
    model.get_submodule(HEAD).requires_grad_(True)
    return {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}


def put(trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Writes values into the parameters."""
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])


def loss(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy () of a batch (batch, length)."""
    return F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)


def optimizer(trained: Sequence[nn.Parameter], hyper: Hyper) -> torch.optim.Optimizer:
    """A client's optimiser: each begins anew."""
    return torch.optim.AdamW(trained, lr=hyper.lr, weight_decay=hyper.weight_decay)


def train(
    model: nn.Module, trained: Mapping[str, nn.Parameter], data: Mapping[str, Tensor], order: Tensor, hyper: Hyper
) -> None:
    """Trains one client in place.

    Args:
        model: With what ``attach`` put on.
        trained: What ``attach`` returned.
        data: ``ids`` and ``mask`` (n, length), ``labels`` (n,).
        order: Positions of each step's examples (steps, batch).
        hyper: With what.
    """
    stepper = optimizer(list(trained.values()), hyper)
    for chosen in order:
        value = loss(model, data["ids"][chosen], data["mask"][chosen], data["labels"][chosen])
        stepper.zero_grad()
        value.backward()
        stepper.step()


def mean(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """FedAvg of clients with equally many examples, summed in float64."""
    return {name: sum(u[name].double() for u in updates).div(len(updates)).float() for name in updates[0]}  # type: ignore[union-attr]  # no sum is empty
