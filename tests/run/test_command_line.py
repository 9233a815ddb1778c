"""The command that starts a run again: it composes the same configuration, and names no folder of this machine."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flt.run.command_line import LEFT_OUT, command_of, local_command
from flt.run.compose import flat, load_config
from flt.run.conf_groups import choices
from flt.run.overrides import hydra_value
from flt.run.schema import TrainConfig
from flt.run.stored import StoredRun


def kept(cfg: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in flat(cfg).items() if key not in LEFT_OUT}


GIVEN: list[list[str]] = [
    [], ["seed=3", "local.lr=1e-3", "ranks=[2,4]", "local.clip=1.5", "name=x", "threads=2"],
    ["jobs=per_task", "grouping=kmeans", "grouping.k=silhouette", "adapter=houlsby"], ["data=glue", "data.use=[sst2]"],
    ["data=newsgroups20", "model=minilm", "model.max_length=32"], ["model.random=true", "export.base=delta"],
    ["data=dolly", "model=org/decoder", r"data.prompts=['it\'s {instruction}', 'a\\']"],
    ["partition.kind=by_column", "data.column='my column'", "data.where={lang: [en, 'a b']}", "experiment=rank_tiers"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", GIVEN, ids=str)
@pytest.mark.parametrize("algo", ["hafl", "fedavg", "c2a"])
def test_the_command_composes_the_configuration_again(algo: str, overrides: list[str]) -> None:
    cfg = load_config([f"algo={algo}", *overrides])
    flt, train, *words = shlex.split(command_of(cfg))
    assert (flt, train) == ("flt", "train")
    assert kept(load_config(words)) == kept(cfg)


@pytest.mark.parametrize("algo", choices("algo"))
def test_a_recipe_with_its_defaults_needs_only_its_name(algo: str) -> None:
    assert command_of(load_config([f"algo={algo}"])) == f"flt train algo={algo}"


def test_of_paths_only_the_last_part_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret" / "bert").mkdir(parents=True)
    (tmp_path / "secret" / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for data, said in (("secret/r.csv", "r.csv"), ("secret/photos", "./photos"), ("org/name", "org/name")):
        cfg = load_config(["algo=fedit", f"data={tmp_path}/{data}" if "secret" in data else f"data={data}",
                           "model=./secret/bert", f"data.test_path={tmp_path}/secret/t.csv"])  # fmt: skip
        assert command_of(cfg) == f"flt train algo=fedit data={said} model=./bert data.test_path=t.csv"


def test_a_run_of_fit_is_a_line_of_python() -> None:
    cfg = load_config(["algo=fedit", "rounds=3", "local.steps=2"])
    cfg = dataclasses.replace(cfg, data={"name": "own"}, model={"name": "Mine", "adapt_layers": "all"})
    assert command_of(cfg) == 'flt.fit(Mine(), clients, algo="fedit", rounds=3, overrides=["local.steps=2"])'


def spaced(path: str) -> str:
    return shlex.quote(f"data={hydra_value(path)}")


def test_a_local_command_has_the_paths_that_work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "work" / "logs" / "x" / "version_0"
    (tmp_path / "work" / "bert").mkdir(parents=True)
    (tmp_path / "work" / "a b.csv").touch()
    settings = {
        "root": "logs", "name": "x", "data": {"name": "file", "path": "a b.csv", "test_path": "/gone/t.csv"},
        "model": {"name": "hub", "path": str(tmp_path / "work" / "bert")},
    }  # fmt: skip
    stored = StoredRun(run, settings, [], {}, None)
    command = f"flt train algo=fedit {spaced('a b.csv')} data.test_path=t.csv model=./bert adapter=none rounds=2"
    head, tail = "flt train algo=fedit", "adapter=none rounds=2"
    monkeypatch.chdir(tmp_path / "work")
    assert (
        local_command(command, stored) == f"{head} {spaced('a b.csv')} data.test_path=/gone/t.csv model=./bert {tail}"
    )
    monkeypatch.chdir(tmp_path)
    assert local_command(command, stored) == (
        f"{head} {spaced('work/a b.csv')} data.test_path=/gone/t.csv model=./work/bert {tail}"
    )
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    place = tmp_path / "work"
    assert local_command(command, stored) == (
        f"{head} {spaced(f'{place}/a b.csv')} data.test_path=/gone/t.csv model={place}/bert {tail}"
    )
    for other in ("flt.fit(Mine(), clients)", "flt train 'data=", ""):
        assert local_command(other, stored) == other
    hub = StoredRun(run, {**settings, "model": {"name": "hub", "path": "org/bert"}}, [], {}, None)
    assert local_command("flt train algo=fedit model=org/bert", hub) == "flt train algo=fedit model=org/bert"


def test_a_recipe_that_is_not_in_conf_has_no_command() -> None:
    assert command_of(dataclasses.replace(load_config(["algo=fedit"]), algo="mine")) == ""


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@settings(max_examples=20)
@given(st.lists(TEXTS, max_size=3), st.one_of(st.none(), TEXTS))
def test_any_text_is_read_as_it_was_written(prompts: list[str], column: str | None) -> None:
    words = [f"data.prompts={hydra_value(prompts)}", f"data.column={hydra_value(column)}"]
    cfg = load_config(["algo=fedit", *words])
    assert (cfg.data["prompts"], cfg.data["column"]) == (prompts, column)
    assert kept(load_config(shlex.split(command_of(cfg))[2:])) == kept(cfg)
