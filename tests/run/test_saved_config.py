"""A run's config.yaml that somebody has changed: read in bounds, and refused in a line."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bombs
import pytest
from commands import in_empty_folder, train

from flt.core import plain_yaml
from flt.core.errors import InputError
from flt.core.plain_yaml import LARGEST
from flt.core.typed import typed
from flt.data.config import DataConfig
from flt.run import compose, resume
from flt.run.compose import load_config, to_yaml
from flt.run.folder import folder_of
from flt.run.resume import configure
from flt.run.schema import TrainConfig

SAVED: dict[str, tuple[Callable[[str], str], str]] = {
    "aliases": (lambda text: f"{bombs.ALIASES}{text}", "it contains aliases, or more than 30 levels"),
    "one alias": (lambda text: f"{text}x: &x 1\ny: *x\n", "it contains aliases"),
    "a key that contains itself": (lambda text: f"{text}x: &x [*x]\n", "it contains aliases"),
    "interpolations": (lambda text: f"{text}x: ${{name}}${{name}}\n", "it contains interpolations"),
    "a variable of the environment": (lambda text: text.replace("name: fedit", "name: ${oc.env:HOME}"), "interp"),
    "many levels": (lambda text: f"{text}x: {'[' * 100}{']' * 100}\n", "more than 30 levels"),
    "many bytes": (lambda text: f"{text}# {'x' * LARGEST}\n", f"it is larger than {LARGEST} bytes"),
    "a section that is a list": (lambda text: text.replace("local:", "other:") + "local: [1]\n", "local is no section"),
    "a part that is a word": (lambda text: f"engine: x\n{without(text, 'engine')}", "engine"),
    "a part that is a list": (lambda text: f"rule: [1]\n{without(text, 'rule')}", "rule"),
    "an integer of 400 digits": (lambda text: text.replace("seed: 0", "seed: " + "9" * 400), "below 2.63"),
    "an integer of 5000 digits": (lambda text: text.replace("seed: 0", "seed: " + "9" * 5000), "Exceeds the limit"),
    "a number for a name": (lambda text: text.replace("name: fedit", "name: [run]"), "otherwise"),
}  # fmt: skip


def without(text: str, section: str) -> str:
    before, _, after = text.partition(f"\n{section}:")
    lines = after.split("\n")[1:]
    left = next((at for at, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    return "\n".join([before, *lines[left:]])


@pytest.mark.parametrize("what", SAVED)
def test_a_changed_configuration_is_refused_in_a_line_and_soon(what: str, tmp_path: Path) -> None:
    change, why = SAVED[what]
    changed = change(to_yaml(load_config(["algo=fedit"])))
    (tmp_path / "config.yaml").write_text(changed)
    began = time.monotonic()
    with pytest.raises(InputError, match=why) as raised:
        configure(
            ["algo=fedit", f"resume={tmp_path}", "rounds=11"]
            if what != "no bytes"
            else [f"resume={tmp_path}", "seed=1"]
        )
    assert time.monotonic() - began < 20
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 5000


def test_a_folder_in_the_place_of_the_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(InputError, match=r"there is no config\.yaml in it"):
        configure([f"resume={tmp_path}"])


def test_many_missing_keys_compose_the_defaults_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("name: fedit\nalgo: fedit\n")
    composed, real = [], compose._compose
    monkeypatch.setattr(compose, "_compose", lambda overrides: composed.append(overrides) or real(overrides))
    configure(["algo=fedit", f"resume={tmp_path}"])
    assert len(composed) <= 4


@pytest.mark.parametrize("name", ["languages", "'languages'", '"languages"'])
def test_an_experiments_keys_are_found_however_its_name_is_quoted(name: str) -> None:
    assert "partition" in set(resume._given([f"experiment={name}"]))
    assert set(resume._given(["experiment=null"])) == {"experiment"}


TEXTS = ["pay ${amount}", "${oc.env:HOME}", "a \\${b} \\\\${c}", "${", "\\\\ ${a}${a}", "{a}: $ {b} \\n", "\n${x}\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_run_with_a_dollar_sign_and_a_brace_in_a_prompt_can_be_resumed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = load_config(["algo=fedit"])
    cfg = dataclasses.replace(cfg, data={**cfg.data, "prompts": [text], "of": {text: text}})
    folder_of(cfg)
    saved = configure(["algo=fedit", "resume=last"])
    assert saved.data == cfg.data
    again = dataclasses.replace(saved, resume=None)
    assert to_yaml(again) == to_yaml(cfg)


def test_a_prompt_that_the_command_repeats_with_its_escapes_is_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = r"data.prompts=['pay \${amount}']"
    cfg = load_config(["algo=fedit", prompts])
    assert cfg.data["prompts"] == ["pay ${amount}"]
    assert typed(DataConfig, {"prompts": cfg.data["prompts"]}, "data").prompts == ["pay ${amount}"]
    folder_of(cfg)
    assert configure(["algo=fedit", "resume=last", prompts]).data == cfg.data


@pytest.mark.parametrize(("limit", "value"), [("LARGEST", 2000), ("MOST", 100), ("DEEPEST", 1)])
def test_a_configuration_that_no_resume_would_read_is_refused_before_there_is_a_folder(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plain_yaml, limit, value)
    with pytest.raises(
        InputError, match=r"^config.yaml=<\d+ characters>: it .*; allowed is at most \d+ bytes, \d+ values"
    ):
        folder_of(load_config(["algo=fedit"]))
    assert list(tmp_path.iterdir()) == []


def test_as_many_ranks_as_a_large_run_has_are_within_the_limits() -> None:
    plain_yaml.check("ranks:\n" + "- 4\n" * 250_000)


@pytest.mark.parametrize("resume", ["last", "folder"])
def test_a_run_below_a_folder_with_a_dollar_sign_and_a_brace_can_be_resumed(
    resume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=fedit", r"root='a\${b}'") == 0
    folder = Path("a${b}/fedit/version_0")
    assert folder.is_dir()
    given = "last" if resume == "last" else rf"'{folder}'".replace("${", r"\${")
    cfg = configure(["algo=fedit", r"root='a\${b}'", "rounds=2", f"resume={given}"])
    assert (cfg.root, cfg.resume, cfg.rounds) == ("a${b}", str(folder), 2)


def test_a_models_folder_may_have_a_dollar_sign_and_a_brace_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a${b}"
    folder.mkdir()
    written = str(folder).replace("${", r"\${")
    assert load_config([f"model={written}"]).model["path"] == str(folder)


def test_a_run_of_a_version_with_fewer_settings_of_data_goes_on(tmp_path: Path) -> None:
    saved = to_yaml(load_config(["algo=fedit", "data=reviews.csv"]))
    older = [line for line in saved.split("\n") if line.split(":")[0].strip() not in ("encoding", "delimiter", "quote")]
    assert len(older) == saved.count("\n") - 2
    (tmp_path / "config.yaml").write_text("\n".join(older))
    given = ["algo=fedit", "data=reviews.csv", f"resume={tmp_path}"]
    assert configure(given).data["encoding"] is None
    with pytest.raises(InputError, match="the run to go on with was started otherwise"):
        configure([*given, "data.encoding=cp1252"])


def test_a_run_of_a_version_with_fewer_settings_of_a_part_goes_on_with_the_part_named_again(tmp_path: Path) -> None:
    named = ["algo=fl_tac", "grouping=dbscan", "grouping.memory=true"]
    saved = to_yaml(load_config(named))
    older = [line for line in saved.split("\n") if line.strip() not in ("memory_rounds: null", "memory_width: 4096")]
    assert len(older) == saved.count("\n") - 1
    (tmp_path / "config.yaml").write_text("\n".join(older))
    given = [*named, f"resume={tmp_path}"]
    assert "memory_width" not in configure(given).grouping
    for changed in ("grouping.memory_width=8", "grouping.eps=1", "grouping=hdbscan"):
        with pytest.raises(InputError, match="the run to go on with was started otherwise"):
            configure([*given, changed])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"task_changes": {"parity": "digit"}},
            "task_changes.parity=digit: allowed is {name: a list of values}, or null",
        ),
        (
            {"task_rounds": {"parity": 3}},
            "task_rounds.parity=3: allowed is {name: a list of integers or null}, or null",
        ),
        ({"logger": 3}, "logger=3: allowed is a list of texts"),
        ({"fleet": 4}, "fleet=4: allowed is a mapping, such as {name: value}"),
        ({"seed": "one"}, "seed=one: allowed is an integer"),
    ],
)
def test_a_value_of_another_type_is_refused_in_plain_words(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        typed(TrainConfig, settings, "")
    assert str(refused.value) == said
