"""What every test shares: one thread, a cache, the real data where there is any, and no files left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch and matplotlib are imported; processes that a test starts inherit them.
os.environ["OMP_NUM_THREADS"] = "1"  # sums run in the same order everywhere: same bits
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("flt", deadline=None)
settings.load_profile("flt")

LITTER_OF_TOOLS = {"__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache", ".coverage"}


def pytest_sessionstart() -> None:
    import torch

    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what was imported stays: a full collection needn't look through it after every few tests


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


@pytest.fixture(scope="session")
def flt_data() -> Path:
    """The folder of real data sets."""
    folder = os.environ.get("FLT_DATA")
    if not folder:
        pytest.skip("needs real data: set FLT_DATA to its folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def leave_no_files_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test after which the repository holds a file or a run that it did not hold before."""
    root = request.config.rootpath
    before = listing(root)
    yield
    left = sorted(listing(root) - before)
    assert not left, f"the test left behind: {', '.join(left)}"


def listing(root: Path) -> set[str]:
    """The entries of the repository's top folder and its runs, two levels deep."""
    paths = [*root.glob("*"), *root.glob("lightning_logs/*"), *root.glob("lightning_logs/*/*")]
    names = {str(path.relative_to(root)) for path in paths if path.name not in LITTER_OF_TOOLS}
    return {name for name in names if not name.endswith(".egg-info")}
