"""``flt completion``: the script for bash is loaded into a bash and called as readline calls it."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from flt.cli import completion
from flt.cli.commands import COMMANDS
from flt.cli.main import main
from flt.run.compose import compose_config
from flt.run.conf_groups import choices

CALL = """
complete() {{ :; }}  # the shell of a script has no readline
compopt() {{ :; }}
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
source /dev/stdin <<'SCRIPT'
{script}SCRIPT
COMP_LINE={line} COMP_POINT={point} COMP_WORDS=({words}) COMP_CWORD={number}
_flt
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(line: str, script: str | None = None) -> list[str]:
    """Candidates at the end of a line; readline breaks words at = as well."""
    broken = line.replace("=", " = ").split()
    ends = line.endswith(" ") or line.endswith("=")
    broken += [""] if ends else []
    code = CALL.format(
        script=completion.bash() if script is None else script,
        line=shlex.quote(line),
        point=len(line),
        words=shlex.join(broken),
        number=len(broken) - 1,
    )
    done = subprocess.run(["bash", "--norc"], input=code, text=True, capture_output=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("flt trai", ["train"]),
        ("flt com", ["completion", "compile=", "compression=", "compression.down="]),
        ("flt train alg", ["algo="]),
        ("flt train algo=ha", ["hafl", "haflq"]),
        ("flt algo=fl_", ["fl_tac", "fl_tac_memory", "fl_tac_unlocked"]),
        ("flt train seed=1 rule=k", ["krum"]),
        ("flt train rule.tr", ["rule.trim="]),
        ("flt train local.w", ["local.weight_decay="]),
        ("flt train compile=", ["false", "true"]),
        ("flt train resume=", ["last"]),
        ("flt sweep algo=hafl,fedi", ["hafl,fedit"]),
        ("flt cache ", ["clear"]),
        ("flt completion ", ["bash", "zsh", "fish"]),
        ("flt train data=./x", []),
        (
            "flt generate ",
            [
                "--interactive",
                "prompt=",
                "context=",
                "field.",
                "raw=",
                "prompts=",
                "out=",
                "set=",
                "group=",
                "temperature=",
                "top_p=",
                "top_k=",
                "max_new_tokens=",
                "seed=",
                "batch_size=",
                "device=",
                "root=",
                "base=",
                "last",
            ],
        ),
        ("flt show ", ["--json", "root=", "last"]),
        ("flt list algo", ["algo"]),
        ("flt list r", ["runs", "root=", "rule"]),
        ("flt config --", ["--command"]),
        ("flt config local.w", ["local.weight_decay="]),
        ("flt config algo=ha", ["hafl", "haflq"]),
        ("flt doctor ", ["--json", "root="]),
    ],
)
def test_bash_completes_commands_keys_and_choices(line: str, candidates: list[str]) -> None:
    found = completed(line)
    assert set(candidates) <= set(found)
    assert len(found) == len(candidates) or line == "flt com"


def test_bash_offers_all_choices_of_a_group_and_all_keys() -> None:
    assert completed("flt train algo=") == choices("algo")
    offered = set(completed("flt train "))
    for key, value in compose_config(["algo=fedit"]).items():
        names = [f"{key}.{name}" for name in value if name != "name"] if hasattr(value, "items") else [key]
        assert {f"{name}=" for name in names} <= offered


def test_the_commands_are_those_of_the_command_line() -> None:
    assert set(completed("flt ")) >= set(COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_has_no_syntax_error(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "@" not in script
    for word in ("train", "sweep", "hafl", "weight_decay="):
        assert word in script
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "error: completion=tcsh: allowed is bash, zsh, fish\n"
