"""``flt help``: what it says comes from the comments of conf/, whole and without torch."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from flt.cli import conf_comments
from flt.cli.main import main
from flt.run.compose import compose_config
from flt.run.conf_groups import choices, config_folder, groups

HEAVY = ("torch", "lightning", "hydra", "transformers", "numpy")
GROUPS = [group for group in groups() if group not in conf_comments.RECIPES]


def shown(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(line.split()) == 0
    return capsys.readouterr().out


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("line", ["", "--help", "-h", "help"])
def test_the_overview_names_the_commands_and_the_choices(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(line, capsys)
    for command in ("flt [train] [key=value ...]", "flt sweep key=a,b", "flt cache", "flt completion"):
        assert command in text
    for group in groups():
        assert f"{group} {', '.join(choices(group))}" in words(text)


@pytest.mark.parametrize("line", ["train --help", "train -h", "help train", "sweep --help", "--help sweep"])
def test_a_training_command_s_help_has_every_key_with_its_default_and_meaning(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(line, capsys)
    assert f"flt {'sweep' if 'sweep' in line else 'train'} " in text.splitlines()[0]
    defaults = dict(re.findall(r"^  ([a-z_.0-9]+)=(\S+(?: \S+)*)", text, re.MULTILINE))
    for name, value in leaves().items():
        assert OmegaConf.create(f"x: {defaults[name]}").x == value or defaults[name] == conf_comments.BLOCK, name
    for key in conf_comments.all_keys():
        assert words(f"{key.name}={key.default} {key.meaning}") in words(text)
        assert key.meaning, f"{key.name} has no comment in conf/"
    for group in groups():
        for choice in choices(group):
            assert re.search(rf"^    {choice} +\S", text, re.MULTILINE), choice


def leaves() -> dict[str, object]:
    """The keys of the default configuration as Hydra composes them: those of sections and parts by dotted names."""
    found: dict[str, object] = {}
    for key, value in compose_config(["algo=fedit", "name=run"]).items():
        if OmegaConf.is_dict(value):
            found |= {f"{key}.{name}": item for name, item in value.items() if name != "name"}
        elif key != "algo":
            found[str(key)] = value
    return found


def test_a_key_of_other_choices_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    text = words(shown("train --help", capsys))
    trim = text.index("rule.trim=0.2")
    assert "[trimmed_mean]" in text[trim : trim + 160]
    assert "rule.weights=examples examples, uniform, or norm" in text


def test_a_meaning_is_written_in_conf_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (config_folder() / "train.yaml").read_text().splitlines()
    (resume,) = (line for line in lines if line.startswith("resume: null"))
    assert words(f"resume=null {resume.partition('# ')[2]}") in words(shown("train --help", capsys))


@pytest.mark.parametrize("group", GROUPS)
def test_a_choice_s_summary_is_the_first_sentence_of_its_file(group: str) -> None:
    for choice in choices(group):
        text = (config_folder() / group / f"{choice}.yaml").read_text()
        summary = conf_comments.summary(group, choice)
        assert summary.endswith(".")
        assert len(summary) > 15
        assert words(text.replace("\n#", " ")).startswith(f"# {summary}")


@pytest.mark.parametrize("line", ["train algo=hafl --help", "algo=hafl -h", "sweep algo=hafl --help"])
def test_the_help_of_a_recipe_is_its_head_and_what_it_sets(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(line, capsys)
    head = [line[2:] for line in (config_folder() / "algo/hafl.yaml").read_text().splitlines() if line.startswith("# ")]
    for comment in head[1:]:  # behind Hydra's directive
        assert comment in text
    assert "@package" not in text
    assert text.splitlines()[-5:] == [
        "  selection=freeze", "  importance=gradient", "  rule=mean", "  name=hafl", "  ranks=[2,4,8]",
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", ["hafl", "fl_tac_unlocked", "c2a"])
def test_what_a_recipe_is_said_to_set_composes_to_the_recipe(recipe: str) -> None:
    given = [f"{key}={value}" for key, value in conf_comments.settings(config_folder() / "algo" / f"{recipe}.yaml")]
    spelt = {**compose_config(["algo=fedit", *given]), "algo": recipe}
    assert spelt == dict(compose_config([f"algo={recipe}"]))


def test_a_part_s_help_has_the_keys_of_that_part_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("train rule=trimmed_mean --help", capsys)
    assert "rule.trim=0.2" in text
    assert "rule.pad" not in text
    assert "rounds=" not in text


def test_the_help_of_the_cache_has_its_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("cache --help", capsys)
    assert "tokens, prefix, embedded" in text
    assert "cache.max_gb=20" in text
    assert "rounds" not in text


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("help nothing", "help=nothing: allowed is train, sweep, cache, report, completion"),
        ("train algo=hafll --help", "algo=hafll: allowed is c2a, central"),
    ],
)
def test_help_on_what_is_not_there_is_one_line(line: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {error}")


def test_a_line_has_80_columns_unless_it_is_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("--help", "train --help", "sweep --help", "cache --help", "completion --help"):
        long = [found for found in shown(line, capsys).splitlines() if len(found) > 80]
        assert all(len(found.split()) == 1 for found in long), long


def test_help_and_completion_import_nothing_heavy() -> None:
    lines = ["--help", "train --help", "sweep --help", "cache --help", "algo=hafl --help", "completion bash"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); from flt.cli.main import main; "
        f"sys.exit(sum(main(line.split()) for line in {lines}))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_closes_the_pipe_gets_no_traceback() -> None:
    command = f"{shlex.quote(sys.executable)} -m flt train --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
