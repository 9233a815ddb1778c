"""Trained toys whose exports peft loads."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
from peft import PeftModel
from torch import nn
from toys import FEATURES

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.protocol.layout import Layout
from flt.protocol.state import ServerState
from flt.server.aggregation import ServerAggregation


def loaded(base: nn.Module, folder: Path) -> PeftModel:
    """Loads an adapter; a warning about keys that are missing or left over is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(missing|unexpected).*")
        return PeftModel.from_pretrained(base, folder)  # type: ignore[arg-type]  # any module will do


def trained(module: pl.LightningModule, layout: Layout, alive: Mapping[str, tuple[int, ...]]) -> ServerState:
    """A state in which every tensor has moved, and some pairs are cut."""
    state = ServerAggregation(Recipe(Mean()), layout, 1, 0, {}).initial(dict(module.named_parameters()))
    generator = torch.Generator().manual_seed(1)
    group = state.groups[0]
    moved = {name: torch.randn(value.shape, generator=generator) for name, value in group.weights.items()}
    return dataclasses.replace(
        state, groups={0: dataclasses.replace(group, weights=moved)}, alive={**state.alive, **alive}
    )


def with_dead_pairs_at_zero(module: nn.Module, layout: Layout, state: ServerState) -> nn.Module:
    weights = dict(state.groups[0].weights)
    for name, layer in layout.layers.items():
        dead = [i for i in range(layer.rank) if i not in state.alive[name]]
        weights[layer.b] = weights[layer.b].index_fill(1, torch.tensor(dead, dtype=torch.long), 0)
    module.load_state_dict(weights, strict=False)
    return module.eval()


X = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(3))
