"""Several jobs at once yield what they yield one after another."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from stacks import Spy, assert_equal, batched, compared, federator_of, tasks_of

from flt.callbacks.local import LocalFit
from flt.choices import choices
from flt.client import Optimizer
from flt.engines.batched import Batched
from flt.engines.serial import Serial
from flt.messages import Plan
from flt.plans import AdapterPlan
from flt.ranks.importance import GradientSensitivity
from flt.ranks.selection import Freeze, Truncate
from flt.recipe import Recipe
from flt.rules.mean import Mean

RANKS = {algo: (4, 2, 1, 3) for algo in ("hafl", "haflq", "flexlora", "hetlora")}
SERIAL = {"c2a": "figures of one client", "fedavg": "the backbone itself changes"}
"""Recipes that are trained one job after another, and why."""
ADAMW = Optimizer("adamw", lr=1e-3, weight_decay=0.1)


@pytest.mark.parametrize("algo", choices("algo"))
def test_every_recipe_yields_what_it_yields_serially(algo: str, caplog: Any) -> None:
    federator = federator_of(algo, ranks=RANKS.get(algo))
    _, _, engine = compared(federator)
    assert [SERIAL[algo] in why for why in engine._refused.values()] == [True] if algo in SERIAL else not engine._refused
    assert sum("one job after another" in record.message for record in caplog.records) == (algo in SERIAL)


def test_the_full_stage_of_sa_fedlora_is_serial_and_the_other_stacked() -> None:
    federator = federator_of("sa_fedlora", "plan.until=1")
    _, _, engine = compared(federator, rounds=0)
    assert list(engine._refused.values()) == ["the backbone itself changes"]
    tasks = tasks_of(federator, rounds=1)
    assert engine.reason(tasks[0]) is None


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2", "llama", "electra", "modernbert"])
def test_ragged_texts_on_every_type_of_encoder(kind: str) -> None:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    del off
    federator = federator_of(kind=kind, sizes=(11, 6, 17, 3))
    spy_engine = batched(federator)
    tasks = tasks_of(federator)
    spy = Spy().on(spy_engine)
    assert_equal(list(spy_engine.run(tasks)), list(federator.engine.run(tasks)))
    assert spy.sizes == [4]
