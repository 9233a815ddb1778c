"""``flt cache`` shows and removes entries, and starts quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flt.cli.main import main
from flt.core import cache

HEAVY = ("torch", "lightning", "hydra", "transformers", "numpy")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one entry of each kind."""
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_used", set())
    tokens = {"data": "reviews [train]", "model": "org/small", "texts": "0123456789abcdef", "max_length": 64}
    for kind, about, size in (("tokens", tokens, 1_500), ("prefix", {"model": "org/small"}, 2_000)):
        cache.get_or_build(
            kind, about, lambda path, n=size: None if (path / "x").write_bytes(b"x" * n) else None, size, 10**9
        )
    (tmp_path / "cache" / "embedded-vit-0123").mkdir()
    (tmp_path / "cache" / "embedded-vit-0123" / "model.safetensors").write_bytes(b"x" * 500)
    return tmp_path / "cache"


def shown(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["cache", *arguments]) == 0
    return capsys.readouterr().out.splitlines()[1:]  # without the line that every command begins with


def test_shows_what_there_is_where_and_how_much(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys=capsys)
    text = "\n".join(lines)
    (tokens,) = (line for line in lines if line.startswith("tokens"))
    assert "org/small, reviews [train], max_length 64" in tokens
    assert "1.5 kB" in tokens
    assert "0123456789abcdef" not in text
    assert {line.split()[0] for line in lines if "-" in line and ":" in line} == {"tokens", "prefix", "embedded"}
    assert lines[-1] == f"4.0 kB in {folder}"


def test_clear_removes_one_kind_and_then_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("clear", "prefix", capsys=capsys) == [f"2.0 kB freed in {folder}"]
    assert {entry.kind for entry in cache.entries()} == {"tokens", "embedded"}
    assert shown("clear", capsys=capsys) == [f"2.0 kB freed in {folder}"]
    assert shown(capsys=capsys) == [f"the cache is empty: {folder}"]


def test_clear_says_what_stays(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (used,) = (entry.path for entry in cache.entries() if entry.kind == "tokens")
    code = "import sys, pathlib, flt.core.locks as l; l.hold(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, used], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        said = shown("clear", capsys=capsys)
        user.communicate(b"\n")
    assert said == [f"2.5 kB freed in {folder}", "1 entry stays, because a run uses it"]
    assert shown("clear", capsys=capsys) == [f"1.5 kB freed in {folder}"]


@pytest.mark.parametrize("arguments", ["purge", "clear all", "clear tokens prefix", "tokens", "max_gb=3"])
def test_anything_else_is_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *arguments.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cache")
    assert "clear" in line
    assert len(cache.entries()) == 3


def test_imports_nothing_heavy() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); "
        "from flt.cli.main import main; sys.exit(main(['cache']))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "org/small" in done.stdout
