"""An export replaces the one before at once, and what others have put beside it stays, wherever a process is killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flt.core.errors import InputError
from flt.export import folder
from flt.export.folder import EXPORTS, finish, is_export, remove_export, remove_unfinished, unfinished

MINE = (
    "notes.txt", "my/model.safetensors", "my/config.json", "my/deep/adapter_config.json", "group_mine/config.json",
    "group_1/notes.txt", "group_1/my/config.json", "group_1/head_2/my/config.json", "group_1/group_2/config.json",
    "client_1/job_0/job_1/config.json", "job_0/config.json", "checkpoint-5/adapter_model.safetensors",
)  # fmt: skip
OWN = (
    "config.json", "label_names.json", "group_1/adapter_config.json", "group_1/head_2/adapter_model.safetensors",
    "classes.json", "head_a b/flt_adapter.json", "client_3/model-1-of-2.safetensors", "client_3/job_0/flt_base.json",
)  # fmt: skip


class Killed(BaseException):
    """Stands for the end of a process that is killed: nothing is done after it."""


def lay(place: Path, names: tuple[str, ...], text: str) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


def files(place: Path) -> dict[str, str]:
    return {path.relative_to(place).as_posix(): path.read_text() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with an export and files of others."""
    lay(tmp_path / "adapter", OWN, "old")
    lay(tmp_path / "adapter", MINE, "mine")
    (tmp_path / "adapter" / "empty").mkdir()
    (tmp_path / "adapter" / "flt_adapter.safetensors").symlink_to(tmp_path / "adapter" / "notes.txt")
    return tmp_path


def export(run: Path, names: tuple[str, ...] = ("model.safetensors", "group_1/adapter_config.json")) -> None:
    with unfinished(run) as built:
        lay(built, names, "new")
        finish(built, run / "adapter")


def kill(monkeypatch: pytest.MonkeyPatch, call: int, run: Path) -> None:
    """Writes an export in a process that is killed before a certain one of its renames."""
    calls, rename = [], Path.rename

    def killed(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) >= call:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        for of in ("_give_up", "_discard"):
            patch.setattr(folder, of, lambda *_: None)
        with pytest.raises(Killed):
            export(run)


def test_only_what_an_export_writes_is_removed_and_only_where_it_writes(run: Path) -> None:
    remove_export(run / "adapter")
    link = {"flt_adapter.safetensors": "mine"}
    assert files(run / "adapter") == dict.fromkeys(MINE, "mine") | link
    assert (run / "adapter" / "flt_adapter.safetensors").is_symlink()
    assert (run / "adapter" / "empty").is_dir()
    assert not (run / "adapter" / "client_3").exists()
    assert not (run / "adapter" / "head_a b").exists()


def test_files_of_others_are_no_export(run: Path) -> None:
    assert is_export(run / "adapter")
    remove_export(run / "adapter")
    assert not is_export(run / "adapter")


@pytest.mark.parametrize(
    ("names", "complete"),
    [
        (("adapter_model.safetensors", "README.md"), True),
        (("group_1/head_2/flt_adapter.safetensors",), True),
        (("client_3/model-1-of-2.safetensors",), True),
        (("README.md", "classes.json", "flt_inputs.json", "flt_base.json"), False),
        (("preprocessor_config.json", "tokenizer.json", "vocab.txt"), False),
        (("label_names.json", "label_names.safetensors"), False),
        (("adapter_config.json", "config.json"), False),
        (("my/model.safetensors",), False),
    ],
)
def test_an_export_is_a_folder_with_the_weights_of_a_model(
    names: tuple[str, ...], complete: bool, tmp_path: Path
) -> None:
    lay(tmp_path / "adapter", names, "old")
    assert is_export(tmp_path / "adapter") == complete


def test_a_new_export_takes_the_place_of_the_old_one_beside_the_files_of_others(run: Path) -> None:
    export(run)
    new = {"model.safetensors": "new", "group_1/adapter_config.json": "new"}
    assert files(run / "adapter") == dict.fromkeys(MINE, "mine") | new | {"flt_adapter.safetensors": "mine"}
    assert (run / "adapter" / "empty").is_dir()
    assert [path.name for path in run.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("put", "where"),
    [
        (lambda path: (path / "flt_base.json").symlink_to("notes.txt"), "flt_base.json"),
        (lambda path: (path / "flt_base.json").mkdir(), "flt_base.json"),
        (lambda path: (path / "group_7").write_text("mine"), "group_7"),
        (lambda path: (path / "group_7").symlink_to("my"), "group_7"),
    ],
    ids=["link to a file", "folder", "file", "link to a folder"],
)
def test_what_others_put_in_the_place_of_the_export_is_a_line_and_all_stays(
    put: Callable[[Path], None], where: str, run: Path
) -> None:
    put(run / "adapter")
    before = files(run)
    with pytest.raises(InputError, match=f"^export=adapter/{where}: allowed is a file or folder that flt wrote, or no"):
        export(run, ("flt_base.json", "group_7/config.json"))
    assert files(run) == before
    assert [path.name for path in run.iterdir()] == ["adapter"]


@pytest.mark.parametrize("call", range(1, 15))
def test_a_kill_while_an_export_is_finished_strands_no_file_of_others(
    call: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: text for name, text in files(run / "adapter").items() if text == "mine"}
    kill(monkeypatch, call, run)
    remove_unfinished(run)
    found = files(run / "adapter")
    assert {name: text for name, text in found.items() if text == "mine"} == before
    assert (run / "adapter" / "empty").is_dir()
    assert [path.name for path in run.iterdir()] == ["adapter"]
    assert is_export(run / "adapter") == (call == 1)  # the old one, which nothing has replaced yet
    export(run)
    assert is_export(run / "adapter")


def test_an_error_while_an_export_is_finished_strands_no_file_of_others(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == run / "adapter":
            raise PermissionError
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError):
        export(run)
    assert set(MINE) <= files(run / "adapter").keys()
    assert [path.name for path in run.iterdir()] == ["adapter"]


def test_what_a_kill_leaves_of_an_export_that_is_being_written_goes(run: Path) -> None:
    before = files(run)
    left = run / ".export-0123456789abcdef"
    lay(left, ("config.json", ".tmpNIIuw4", "group_1/.tmp0aB9zZ"), "half")
    remove_unfinished(run)
    assert files(run) == before
    assert not left.exists()


@pytest.mark.parametrize("target", EXPORTS)
def test_files_of_others_go_back_to_the_folder_that_they_came_from(target: str, tmp_path: Path) -> None:
    left = tmp_path / f".export-{target}-0123456789abcdef"
    lay(left, (*MINE, *OWN), "mine")
    lay(tmp_path / target, ("notes.txt",), "newer")
    remove_unfinished(tmp_path)
    assert files(tmp_path / target) == dict.fromkeys(MINE, "mine") | {"notes.txt": "newer"}
    assert files(left) == {"notes.txt": "mine"}


def test_files_of_others_do_not_go_back_through_a_link(tmp_path: Path) -> None:
    left = tmp_path / ".export-adapter-0123456789abcdef"
    lay(left, ("group_1/notes.txt",), "mine")
    (tmp_path / "away").mkdir()
    (tmp_path / "adapter").mkdir()
    os.symlink(tmp_path / "away", tmp_path / "adapter" / "group_1")
    with pytest.raises(InputError, match="^group_1=<link>"):
        remove_unfinished(tmp_path)
    assert files(tmp_path / "away") == {}
    assert files(left) == {"group_1/notes.txt": "mine"}
