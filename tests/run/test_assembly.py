"""What a run starts with: accepted or refused without an example being read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from benchmarks.pages.combinations import configured
from benchmarks.pages.toy_federation import toy

from flt.run.assembly import assemble, refusal
from flt.run.federation import Federation
from flt.run.stored import OWN
from flt.server.client_sampling import CohortConfig


class Unread:
    """Examples that fail whoever reads them."""

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an example was read")


def unread(kind: str = "text", jobs: str = "per_client") -> Federation:
    made = toy(kind, jobs)
    made.clients = [
        dataclasses.replace(client, data=tuple(dataclasses.replace(job, dataset=Unread()) for job in client.data))
        for client in made.clients
    ]
    return made


def test_a_run_starts_with_its_clients_ranks_and_no_example_is_read() -> None:
    ready = assemble(configured("hafl", "lora"), unread())
    assert [client.rank for client in ready.clients.values()] == [2, 4]
    assert {layer.rank for layer in ready.layout.layers.values()} == {8}
    assert ready.settings.steps == 1


@pytest.mark.parametrize(
    "change",
    [{"cohort": CohortConfig("poisson", None, 0.5)}, {"task_rounds": {"all": [1, 2]}}],
    ids=["a cohort drawn empty", "no job at home"],
)
def test_a_round_may_have_no_update_of_which_no_rule_is_asked(change: dict[str, Any]) -> None:
    assert refusal(dataclasses.replace(configured("hafl", "lora"), **change), unread()) is None


def test_a_module_without_anything_to_train_is_refused_with_what_would_help() -> None:
    assert refusal(configured("fedit", "none"), unread("causal")) == (
        "plan.train=('A', 'B', 'adapter', 'head'): the module has nothing else to train; "
        "allowed is a plan that trains the base, or another adapter"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"ranks": [2, 16]}, "ranks=[2, 16]: allowed is integers up to adapter.rank=8"),
        ({"task_rounds": {"other": [1, 2]}}, "task_rounds=other: there is no such task; allowed is all"),
    ],
)
def test_what_does_not_fit_the_clients_is_refused(change: dict[str, Any], line: str) -> None:
    assert refusal(dataclasses.replace(configured("hafl", "lora"), **change), unread()) == line


def test_tests_of_each_client_need_data_that_flt_loads() -> None:
    cfg = configured("hafl", "lora")
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, client_test_examples=5))
    assert refusal(cfg, unread()) is None
    assert refusal(dataclasses.replace(cfg, data={"name": OWN}), unread()) == (
        "eval.client_test_examples=5: data of one's own have no test split to draw from; allowed is 0"
    )


def test_a_cache_below_the_adapters_is_refused_where_the_base_changes() -> None:
    cfg = dataclasses.replace(configured("flora", "lora"), prefix_cache=True)
    assert "prefix_cache=on" in (refusal(cfg, unread()) or "")
