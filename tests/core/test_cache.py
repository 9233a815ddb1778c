"""The cache on disk: built once and whole, the least recently used gone first, and nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from flt.core import cache
from flt.core.cache_folders import lock
from flt.core.errors import InputError
from flt.core.locks import let_go

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
    let_go()
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
    old, new = ".writing-01234567", ".writing-89abcdef"
    for name, age in ((old, 2 * cache.HOUR), (new, 0), (".writing-mine", 2 * cache.HOUR)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    assert cache.clear() == 10
    assert sorted(path.name for path in folder.iterdir()) == [new, ".writing-mine", "tokens"]
    assert list((folder / "tokens").iterdir()) == []


def test_no_cache_yet_is_empty(folder: Path) -> None:
    assert cache.entries() == []
    assert cache.clear() == 0
    assert not folder.exists()


USER = """
import sys, time
from pathlib import Path
from flt.core import cache

def build(folder):
    (folder / "data").write_bytes(b"x" * 7)

path = cache.get_or_build("tokens", {"of": "a"}, build, 7, 10**9)
Path(sys.argv[1]).touch()
time.sleep(120)
"""


@pytest.fixture
def user(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which uses the entry "a" of 7 bytes."""
    process = subprocess.Popen([sys.executable, "-c", USER, str(tmp_path / "ready")])
    try:
        wait_for(tmp_path / "ready")
        yield process
    finally:
        process.kill()
        process.wait()


def test_what_another_process_uses_is_neither_cleared_nor_makes_room(
    user: subprocess.Popen[bytes], folder: Path
) -> None:
    make("b")
    cache.release()
    assert cache.clear() == 10
    assert [found.about["of"] for found in cache.entries()] == ["a"]
    with pytest.raises(InputError, match=r"beside the .* GB in use"):
        make("c", size=5, limit=10)
    make("c", size=5, limit=12)
    cache.release(keep=False)
    assert [found.about["of"] for found in cache.entries()] == ["a"]
    user.kill()
    user.wait()
    assert cache.clear() == 7  # a killed process uses nothing
    assert list((folder / "tokens").iterdir()) == []


def test_an_entry_is_used_while_its_run_lasts(folder: Path) -> None:
    path = make("a")
    assert cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM) == path
    other = [sys.executable, "-c", "from flt.core import cache; print(cache.clear())"]
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout == "0\n"
    cache.release()
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout == "10\n"


def test_a_run_may_remove_what_it_used_at_its_end(folder: Path) -> None:
    make("a")
    cache.release()
    make("b")
    make("c", kind="prefix")
    cache.release(keep=False)
    assert [found.about["of"] for found in cache.entries()] == ["a"]
    assert list((folder / "prefix").iterdir()) == []


def test_clear_follows_no_link_and_removes_nothing_of_others(folder: Path, tmp_path: Path) -> None:
    key, mine = "0123456789abcdef0123", tmp_path / "mine"
    for name in (key, f".{key}.building", "embedded-vit-0123"):
        (mine / name).mkdir(parents=True)
        (mine / name / "model.safetensors").write_bytes(b"mine")
    make("a")
    (folder / "tokens" / key).symlink_to(mine / key)
    (folder / "tokens" / f".{key}.building").symlink_to(mine / f".{key}.building")
    (folder / "prefix").symlink_to(mine)
    (folder / "embedded-vit-0123").symlink_to(mine / "embedded-vit-0123")
    others = ["embedded-systems", "projects/" + key, "tokens/" + key + "0", "embedded-vit-4567", ".embedded-x.building"]
    for name in others:
        (folder / name).mkdir(parents=True)
        (folder / name / "mine.txt").write_text("mine")
    os.utime(folder / ".embedded-x.building", (time.time() - 2 * cache.HOUR,) * 2)
    assert cache.clear() == 10
    assert len(list(mine.rglob("*.safetensors"))) == 3
    assert all((folder / name / "mine.txt").is_file() for name in others)
    assert (folder / "prefix").is_symlink()
    assert cache.entries() == []


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_only_the_owner_can_read_the_cache(folder: Path) -> None:
    def build(path: Path) -> None:
        (path / "inner").mkdir()
        (path / "inner" / "data").write_bytes(b"x")

    cache.get_or_build("tokens", {"of": "a"}, build, 1, ROOM)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_cache_of_the_version_before_is_closed_to_others_with_the_next_use(folder: Path) -> None:
    make("a")
    (folder / "tokens").chmod(0o755)
    cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM)
    assert stat.S_IMODE((folder / "tokens").stat().st_mode) == 0o700


def test_a_disk_that_fills_up_during_a_build_is_a_line_and_leaves_nothing(folder: Path) -> None:
    def build(path: Path) -> None:
        of_size(4)(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=f"^FLT_CACHE={folder}: .*No space left on device; allowed is"):
        cache.get_or_build("tokens", {"of": "a"}, build, 4, ROOM)
    assert list((folder / "tokens").iterdir()) == []


def test_a_read_only_cache_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("a")
    cache.release()

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("utime", "chmod", "mkdir", "rename"):
        monkeypatch.setattr(os, name, refused)
    assert cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM) == path


def test_without_a_home_the_cache_needs_a_folder_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)
    with pytest.raises(InputError, match="^FLT_CACHE=<not set>: this user has no home folder; allowed is a folder"):
        cache.folder()


def test_another_user_s_entries_are_a_line_that_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, user = make("a"), os.open, os.geteuid()
    cache.release()

    def refused(file: Path, *arguments: int, **more: int) -> int:
        if Path(file).is_relative_to(folder / "tokens"):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(
        InputError, match=f"^FLT_CACHE={folder}: .*Permission denied: '{path}'; allowed is a folder that"
    ):
        cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM)
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    why = f"another user made {path}, and tokens/ and prefix/ are readable for their owner only"
    with pytest.raises(InputError, match=f"^FLT_CACHE={folder}: {why}; allowed is a folder of your own$"):
        cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM)


def test_an_entry_that_another_process_is_just_looking_at_is_removed_all_the_same() -> None:
    path = make("a")
    looking = FileLock(lock(path).lock_file, thread_local=False)
    looking.acquire()
    threading.Timer(0.2, looking.release).start()
    cache.release(keep=False)
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_files_have_no_locks_an_entry_is_used_but_not_made(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = make("a")
    monkeypatch.setattr(fcntl, "flock", flock)
    assert cache.get_or_build("tokens", {"of": "a"}, never, 10, ROOM) == path
    with pytest.raises(
        InputError, match=rf"^FLT_CACHE={folder}: .*; allowed is a folder .*, on a file system with lock"
    ):
        cache.get_or_build("tokens", {"of": "b"}, never, 10, ROOM)
    assert list((folder / "tokens").iterdir()) == [path]
