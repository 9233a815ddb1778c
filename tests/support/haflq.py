"""A HAFLQ recipe, and the bits of what it sends."""

from __future__ import annotations

from typing import Any

from flt.algorithm.compression.methods import Quantised
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.protocol.messages import PackedUpdate, Update, encode

HAFLQ = Recipe(Mean(), selection=Freeze(), importance=GradientSensitivity(), compression=Quantised(ratio=0.9))


def size(messages: list[Any]) -> int:
    return sum(len(encode(message)) for message in messages)


def bits(update: Update) -> list[int]:
    assert isinstance(update, PackedUpdate)
    return update.packed.bits.tolist()
