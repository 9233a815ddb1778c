"""The wheel, in an environment without the source tree, does the main job in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SHIPPED = ("src", "conf", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")

PAGE = (".html", ".css", ".js")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command that knows neither the repository nor the real data; a failure shows all it printed."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "FLT_DATA")}
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build writes beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for path in filter(Path.exists, (REPO / name for name in SHIPPED)):
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(path, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (built,) = (source / "dist").glob("flt-*.whl")
    return built


@pytest.fixture(scope="module")
def bin_dir(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel installed, which borrows every other package from this one."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, symlinks=True)
    scripts = Path(sysconfig.get_path("scripts", vars={"base": str(home)}))
    python = scripts / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    # A folder named by a .pth file has its own .pth files ignored: the editable flt stays out of reach.
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_holds_every_module_and_config(wheel: Path) -> None:
    modules = {path.relative_to(REPO / "src").as_posix() for path in (REPO / "src/flt").rglob("*.py")}
    configs = {f"flt/{path.relative_to(REPO).as_posix()}" for path in (REPO / "conf").rglob("*.yaml")}
    pages = {p.relative_to(REPO / "src").as_posix() for p in (REPO / "src/flt/reports").iterdir() if p.suffix in PAGE}
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert len(pages) == 4
    assert inside >= modules | configs | pages
    assert {name for name in inside if name.endswith((".py", ".yaml"))} == modules | configs


def test_code_and_configs_come_from_the_wheel(bin_dir: Path, tmp_path: Path) -> None:
    code = "import flt; from flt.run.conf_groups import config_folder; print(flt.__file__); print(config_folder())"
    for line in run(bin_dir / "python", "-c", code, cwd=tmp_path).split():
        assert Path(line).is_relative_to(bin_dir.parent)


def test_trains_in_an_empty_folder(bin_dir: Path, tmp_path: Path) -> None:
    run(bin_dir / "flt", "train", "algo=hafl", "rounds=1", "clients=3", cwd=tmp_path)
    assert (tmp_path / "lightning_logs/hafl/version_0/adapter/adapter_model.safetensors").is_file()
    assert b"hafl/version_0" in (tmp_path / "lightning_logs/hafl/version_0/report.html").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["lightning_logs"]
