"""``flt.config``: the configuration of a command line, checked as train does, or that of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from causal_runs import causal_run

import flt
from flt.core.errors import InputError
from flt.run.compose import load_config
from flt.run.conf_groups import choices
from flt.run.configuration import as_yaml


@pytest.mark.parametrize("recipe", choices("algo"))
def test_a_composed_configuration_is_that_of_train(recipe: str) -> None:
    given = [f"algo={recipe}", "rounds=7"]
    assert flt.config(given) == dataclasses.asdict(load_config(given))


def test_a_run_s_configuration_is_the_stored_one() -> None:
    found = flt.config(run=causal_run("one"))
    assert found == yaml.safe_load((causal_run("one") / "config.yaml").read_text())
    assert flt.config(run=causal_run("one") / "adapter") == found


def test_the_yaml_keeps_every_text() -> None:
    settings = {"a": "${x}", "b": r"\${y}", "c": ["1", None, 1.5, True], "d": {"e": "f: g"}}
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.create(as_yaml(settings)), resolve=True) == settings


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["rounds=x"], "rounds=x: "),
        (["rouns=3"], "rouns=3: there is no such key; the nearest is rounds; allowed is"),
        (["algo=nothing"], "algo=nothing: allowed is c2a"),
        (["rule=trimmed_mean", "rule.trim=3"], r"rule.trim=3.0: allowed is a number in \[0, 0.5\)"),
        (["model.max_length=many"], "model.max_length=many: "),
        (["adapter.rank=0"], "adapter.rank=0: "),
        (["data.validation=much"], "data.validation=much: "),
        (["engine=batched", "engine.jobs=0"], "engine.jobs=0: "),
        (["cohort.sampling=all"], "cohort.sampling=all: allowed is fixed, poisson"),
        (["precision=8"], "precision="),
    ],
)
def test_a_wrong_value_is_one_line(given: list[str], line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}"):
        flt.config(given)


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^run=.*flt has written neither a run nor a model there"):
        flt.config(run=tmp_path)
