"""The cache on disk: built once and whole, the least recently used gone first, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from flt.core import cache
from flt.core.errors import InputError

ROOM = 10**9
BUILDER = """
import sys, time
from pathlib import Path
from flt.core import cache

def build(folder):
    with open(sys.argv[1], "a") as file:
        print("building", file=file, flush=True)
    (folder / "data").write_bytes(b"x" * 7)
    time.sleep(float(sys.argv[2]))

cache.get_or_build("tokens", {"of": "a"}, build, 7, 1000)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, of which nothing is in use."""
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_used", set())
    return tmp_path / "cache"


def of_size(size: int) -> Callable[[Path], None]:
    return lambda path: None if (path / "data").write_bytes(b"x" * size) else None


def make(of: str, size: int = 10, limit: int = ROOM, kind: str = "tokens", age: float = 0) -> Path:
    """An entry that was last used some seconds ago."""
    path = cache.get_or_build(kind, {"of": of}, of_size(size), size, limit)
    os.utime(path / "entry.json", (time.time() - age,) * 2)
    return path


def never(_: Path) -> None:
    pytest.fail("built although it is there")


def start(log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(log), str(seconds)], stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = [cache.folder()]
    for name in ("FLT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
        found.append(cache.folder())
    assert found == [tmp_path / "own", tmp_path / "xdg" / "flt", tmp_path / "home" / ".cache" / "flt"]


def test_a_home_of_nobody_is_a_folder_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLT_CACHE", "~nosuchuser/cache")
    assert cache.folder() == tmp_path / "~nosuchuser/cache"


def test_of_two_finished_folders_the_first_one_stays(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "made").write_text(name)
        cache.move_into_place(tmp_path / name, tmp_path / "place")
    assert (tmp_path / "place" / "made").read_text() == "first"
    with pytest.raises(OSError, match="nowhere"):
        cache.move_into_place(tmp_path / "nowhere", tmp_path / "another")


def test_built_once_and_found_afterwards(folder: Path) -> None:
    about = {"of": "a", "length": 3}
    path = cache.get_or_build("tokens", about, of_size(5), 5, ROOM)
    assert path.parent == folder / "tokens"
    assert names(path) == ["data", "entry.json"]
    assert cache.get_or_build("tokens", {"length": 3, "of": "a"}, never, 5, ROOM) == path
    assert names(folder) == [f"tokens/{path.name}/{name}" for name in ("data", "entry.json")]
    (found,) = cache.entries()
    assert (found.kind, found.key, found.path, found.about, found.size) == ("tokens", path.name, path, about, 5)
    assert abs(found.used - time.time()) < 60


@pytest.mark.parametrize("other", [{"of": "b"}, {"of": "a", "more": 1}, {"of": ["a"]}, {"fo": "a"}])
def test_other_values_are_another_entry(other: dict) -> None:
    make("a")
    path = cache.get_or_build("tokens", other, of_size(3), 3, ROOM)
    assert len(cache.entries()) == 2
    assert (path / "data").stat().st_size == 3


def test_another_kind_is_another_entry() -> None:
    assert make("a").name == make("a", kind="prefix").name
    assert {found.kind for found in cache.entries()} == {"tokens", "prefix"}


def test_of_two_threads_one_builds_and_the_other_waits() -> None:
    builds, found = [], []

    def build(path: Path) -> None:
        builds.append(path)
        time.sleep(0.2)
        of_size(4)(path)

    def want() -> None:
        path = cache.get_or_build("tokens", {"of": "a"}, build, 4, ROOM)
        found.append((path / "data").read_bytes())

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert found == [b"xxxx"] * 3


def test_of_two_processes_one_builds_and_the_other_waits(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(log, 0.5) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert log.read_text() == "building\n"
    assert [found.size for found in cache.entries()] == [7]
    assert len(names(folder)) == 2


def test_a_failed_build_leaves_nothing(folder: Path) -> None:
    def build(path: Path) -> None:
        of_size(4)(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build("tokens", {"of": "a"}, build, 4, ROOM)
    assert names(folder) == []
    assert list((folder / "tokens").iterdir()) == []
    make("a")


@pytest.mark.parametrize("of", ["a", "b"])
def test_what_a_killed_build_left_does_not_count_and_goes_with_the_next_build(
    of: str, folder: Path, tmp_path: Path
) -> None:
    process = start(tmp_path / "log", 60)
    wait_for(tmp_path / "log")
    live = cache.clear()
    assert live == 0
    assert len(list(folder.glob("tokens/.*.building"))) == 1
    process.kill()
    process.communicate()
    assert cache.entries() == []
    path = make(of)
    assert names(folder) == [f"tokens/{path.name}/data", f"tokens/{path.name}/entry.json"]
    assert [item.name for item in (folder / "tokens").iterdir()] == [path.name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "entry.json").unlink(),
        lambda path: (path / "entry.json").write_text("{"),
        lambda path: (path / "entry.json").write_text("[]"),
        lambda path: (path / "entry.json").write_text('{"about": 3, "size": 10}'),
        lambda path: (path / "data").write_bytes(b"x"),
        lambda path: (path / "data").unlink(),
    ],
    ids=["no about", "half an about", "a list", "a number", "cut short", "no data"],
)
def test_a_damaged_entry_is_built_again(damage: Callable[[Path], None]) -> None:
    path = make("a")
    damage(path)
    assert cache.entries() == []
    assert make("a") == path
    assert (path / "data").stat().st_size == 10
    assert json.loads((path / "entry.json").read_text())["about"] == {"of": "a"}


def test_the_least_recently_used_make_room() -> None:
    for age, of in enumerate("abcd"):
        make(of, age=100 * (age + 1))
    make("d", age=50)  # was the oldest
    cache.release()
    make("e", size=20, limit=40)
    assert [found.about["of"] for found in cache.entries()] == ["e", "d", "a"]
    assert sum(found.size for found in cache.entries()) == 40


def test_both_kinds_count() -> None:
    make("a", kind="prefix", age=10)
    make("b", age=20)
    cache.release()
    make("c", limit=20)
    assert [(found.kind, found.about["of"]) for found in cache.entries()] == [("tokens", "c"), ("prefix", "a")]


def test_what_this_process_uses_stays_and_is_no_room() -> None:
    make("a", age=100)
    make("b", age=10)
    cache.release()
    make("a", age=100)
    make("c", limit=20)
    assert {found.about["of"] for found in cache.entries()} == {"a", "c"}
    with pytest.raises(InputError) as error:
        make("d", size=15, limit=30)
    assert str(error.value).startswith("cache.max_gb=3e-08: ")
    assert "in use" in str(error.value)
    assert "at least" in str(error.value)
    assert {found.about["of"] for found in cache.entries()} == {"a", "c"}


def test_too_large_is_refused_and_nothing_removed() -> None:
    make("a")
    cache.release()
    with pytest.raises(InputError) as error:
        cache.get_or_build("tokens", {"of": "b"}, never, 2_500_000_000, 2 * ROOM)
    assert str(error.value) == "cache.max_gb=2: 2.5 GB are needed; allowed is at least 2.5"
    assert len(cache.entries()) == 1


def test_a_full_disk_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(9))
    with pytest.raises(InputError) as error:
        cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM)
    assert str(error.value).startswith(f"FLT_CACHE={folder}: ")
    assert "\n" not in str(error.value)


def test_a_cache_that_can_not_be_written_is_one_line(folder: Path) -> None:
    folder.touch()
    with pytest.raises(InputError) as error:
        cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM)
    assert str(error.value).startswith(f"FLT_CACHE={folder}: ")
    assert "\n" not in str(error.value)


def test_clear_frees_one_kind_or_all_and_leaves_other_files(folder: Path) -> None:
    make("a")
    make("b", size=5, kind="prefix")
    (folder / "embedded-vit-0123").mkdir()
    (folder / "embedded-vit-0123" / "model.safetensors").write_bytes(b"x" * 3)
    mine = [folder / "notes.txt", folder / "tokens" / "notes.txt", folder / "other" / "notes.txt"]
    mine[2].parent.mkdir()
    for file in mine:
        file.touch()
    (folder / "prefix" / ".0123456789abcdef0123.lock").touch()
    assert [found.kind for found in cache.entries()].count("embedded") == 1
    assert cache.clear("prefix") == 5
    assert list((folder / "prefix").iterdir()) == []
    assert {found.kind for found in cache.entries()} == {"tokens", "embedded"}
    assert cache.clear("embedded") == 3
    assert cache.clear() == 10
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(mine)
    assert cache.entries() == []
    assert cache.clear() == 0


def test_clear_removes_damaged_entries_and_old_leftovers(folder: Path) -> None:
    (make("a") / "entry.json").unlink()
    for name, age in ((".writing-old", 2 * cache.HOUR), (".writing-new", 0)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    assert cache.clear() == 10
    assert sorted(path.name for path in folder.iterdir()) == [".writing-new", "tokens"]
    assert list((folder / "tokens").iterdir()) == []


def test_no_cache_yet_is_empty(folder: Path) -> None:
    assert cache.entries() == []
    assert cache.clear() == 0
    assert not folder.exists()
