"""What every test shares: one thread, an empty working folder, a cache, and the real data where there is any."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch and matplotlib are imported; processes that a test starts inherit them.
os.environ["OMP_NUM_THREADS"] = "1"  # sums run in the same order everywhere: same bits
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# No test works in the repository, and relative paths were meant from here.
for name in ("PYTHONPATH", "FLT_DATA", "FLT_CACHE"):
    if os.environ.get(name):
        os.environ[name] = os.pathsep.join(map(os.path.abspath, os.environ[name].split(os.pathsep)))

settings.register_profile("flt", deadline=None)
settings.load_profile("flt")


def pytest_sessionstart() -> None:
    gc.disable()  # until everything is imported: the collector would look through torch's objects again and again
    import torch

    torch.set_num_threads(1)
    use_libyaml()
    read_conf_once()


def use_libyaml() -> None:
    """OmegaConf reads and writes YAML with Python's own parser, which takes a seventh of a small run."""
    import omegaconf.omegaconf as omegaconf
    import yaml

    if yaml.__with_libyaml__:
        python = omegaconf.get_omega_conf_dumper()
        dumper = type("Dumper", (yaml.CDumper,), {"yaml_representers": python.yaml_representers})
        omegaconf.get_omega_conf_dumper = lambda: dumper
        yaml.SafeLoader = yaml.CSafeLoader


def read_conf_once() -> None:
    """Hydra reads and merges all files again for each composition; here it does so once for each choice of files.

    It also prepares for interpolated defaults, which conf/ lacks. Unpickling is a faster copy than deepcopy.
    """
    import hydra._internal.defaults_list as defaults_list
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository
    from omegaconf import OmegaConf

    read, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    found, no_choices = dict[Any, bytes](), OmegaConf.create({})

    def kept(key: object, make: Callable[[], object]) -> object:
        if key not in found:
            found[key] = pickle.dumps(make())
        return pickle.loads(found[key])

    def load_config(self: ConfigRepository, config_path: str) -> object:
        key = (*(source.path for source in self.sources), config_path)
        return kept(key, lambda: read(self, config_path))

    def merged(self: ConfigLoaderImpl, defaults: list, repo: object) -> object:
        key = (*(source.path for source in self.repository.sources), repr(defaults))
        return kept(key, lambda: merge(self, defaults, repo))

    ConfigRepository.load_config = load_config
    ConfigLoaderImpl._compose_config_from_defaults_list = merged
    defaults_list._create_interpolation_map = lambda *_: no_choices


FIRST = {
    "test_launcher.py", "test_long_runs.py", "test_new_algorithm.py", "test_results_run.py", "test_resume.py",
    "test_speed.py", "test_wheel.py", "test_imports.py", "test_backbones.py", "test_embedded_cifar.py",
}  # fmt: skip
"""Files whose tests take longest: begun first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what was imported stays: a full collection needn't look through it after every few tests
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def flt_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that ``FLT_CACHE`` names; where it names none, one that the whole session shares."""
    with pytest.MonkeyPatch.context() as patch:
        if "FLT_CACHE" not in os.environ:
            folder = tmp_path_factory.getbasetemp()
            if "PYTEST_XDIST_WORKER" in os.environ:
                folder = folder.parent  # the workers of one session share it
            patch.setenv("FLT_CACHE", str(folder / "flt_cache"))
        yield Path(os.environ["FLT_CACHE"])


@pytest.fixture(scope="session", autouse=True)
def no_reports() -> Iterator[None]:
    """Runs of tests write no report, of 2 MB each, unless a test wants one (tests/support/reports.py)."""
    from flt.api import training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "live_reports", lambda cfg: [])
        yield


@pytest.fixture(autouse=True)
def short_pretraining(
    request: pytest.FixtureRequest, work_in_an_empty_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps instead of 1100 for the embedded backbones; slow tests take the real ones, made once in a session.

    After the working folder, which is thus looked at when the test's own patches are undone.
    """
    from flt.models import embedded, embedded_cifar

    if "slow" not in request.keywords:
        for backbone in (embedded, embedded_cifar):
            monkeypatch.setattr(backbone, "PRETRAINING", dataclasses.replace(backbone.PRETRAINING, steps=2))


@pytest.fixture(scope="session")
def flt_data() -> Path:
    """The folder of real data sets."""
    folder = os.environ.get("FLT_DATA")
    if not folder:
        pytest.skip("needs real data: set FLT_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Finished runs, each of which is trained at its first use."""
    from trained import Trained

    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tests of this process work in, one after another."""
    return tmp_path_factory.mktemp("working_folder")


@pytest.fixture(autouse=True)
def work_in_an_empty_folder(working_folder: Path) -> Iterator[None]:
    """Keeps the tests out of the repository; fails a test that leaves a file in the folder it began in."""
    before = Path.cwd()
    os.chdir(working_folder)
    yield
    os.chdir(before)
    left = sorted(path.name for path in working_folder.iterdir())
    for path in working_folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # or the tests after it would fail as well
    assert not left, f"the test left behind: {', '.join(left)}"
