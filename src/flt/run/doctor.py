"""``flt.doctor``: whether flt can run here, and with what. torch is imported only when the checks reach it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import flt
from flt.core import cache, formatting, openmp
from flt.core.cache_folders import folder as cache_folder
from flt.core.errors import InputError
from flt.core.files import expand_user, system_message
from flt.core.typed import first_line
from flt.run.check import MISSING, NOTE, OK, Check
from flt.run.conf_groups import choices, config_folder

PACKAGES = (
    "torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "hydra-core", "omegaconf", "numpy",
    "safetensors", "tensorboard", "rich",
)  # fmt: skip
"""Packages whose versions are shown if flt isn't installed and therefore doesn't say what it needs."""
EXTRAS = {
    "quantised": "rounded base weights (model.quantise=4bit)",
    "wandb": "logs for Weights & Biases (logger=wandb)",
    "mlflow": "logs for MLflow (logger=mlflow)",
}
"""Extra of flt that a user may want -> what for."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables whose values are shown. No other variable's is."""
LITTLE = 2e9
"""Bytes of free disk space below which a line says so."""


def doctor(*, root: str | Path = "lightning_logs") -> list[Check]:
    """Checks whether flt can run here: versions, devices, threads, folders, data and extras.

    flt can run if no check is ``missing``.

    Args:
        root: Folder of all runs.

    Example:
        >>> doctor()[0].name
        'flt'
    """
    return list(checks(root))


def checks(root: str | Path) -> Iterator[Check]:
    """Yields the checks of :func:`doctor`, the quick ones first."""
    yield Check("flt", "flt", OK, flt.__version__)
    yield from _packages()
    yield from _folders(expand_user(root))
    yield _data()
    yield _hub()
    yield from _extras()
    yield from _devices()


def _packages() -> Iterator[Check]:
    """Yields Python and the packages that flt needs. A version outside of what flt was tested with is a note."""
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("flt") or []]
        python = str(importlib.metadata.metadata("flt")["Requires-Python"] or "")
    except importlib.metadata.PackageNotFoundError:
        why = "make train installs flt with what it needs"
        yield Check("flt", "installation", NOTE, "flt isn't installed, so it can't say which versions it needs", why)
        needed, python = [Requirement(name) for name in PACKAGES], ""
    yield _version("Python", platform.python_version(), SpecifierSet(python))
    for requirement in needed:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Check:
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check("package", requirement.name, MISSING, "not installed", f"pip install '{wanted}'")
    return _version(requirement.name, found, requirement.specifier)


def _version(name: str, found: str, wanted: SpecifierSet) -> Check:
    if not found or wanted.contains(found, prereleases=True):
        return Check("package", name, OK, found)
    return Check("package", name, NOTE, found, f"flt is tested with {name} {wanted}")


def _extras() -> Iterator[Check]:
    """Yields the extras of flt that a user may want, with the packages of which each consists."""
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("flt") or []]
    except importlib.metadata.PackageNotFoundError:
        return
    for extra, purpose in EXTRAS.items():
        own = [one for one in needed if one.marker and not one.marker.evaluate({"extra": ""})]
        own = [one for one in own if one.marker and one.marker.evaluate({"extra": extra})]
        lacking = [check for check in map(_package, own) if check.state != OK]
        if lacking:
            yield Check("extra", extra, NOTE, "not installed", f"for {purpose}: pip install 'flt[{extra}]'")
        elif own:
            yield Check("extra", extra, OK, f"installed, for {purpose}")


def _devices() -> Iterator[Check]:
    """Yields what torch finds. Then imports all of flt, which shows whether the packages fit each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("device", "CPU", OK, f"{cores} cores for this process")
    try:
        torch: Any = importlib.import_module("torch")
        importlib.import_module("flt.api")
    except Exception as error:  # a broken package can raise anything when it is imported
        advice = "install the packages again, or flt in a new environment"
        yield Check("flt", "import", MISSING, f"{type(error).__name__}: {first_line(error)}", advice)
        return
    yield Check("device", "threads", OK, _threads(torch))
    given = [f"{name}={os.environ[name]}" for name in OPENMP if os.environ.get(name, "").isalnum()]
    yield Check("device", "OpenMP", OK, ", ".join(given) or "no settings")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Check("device", f"cuda:{number}", OK, f"{about.name}, {formatting.size(about.total_memory)}, {bf16}")
    if not torch.cuda.device_count():
        why = "runs use the CPU" if torch.version.cuda else f"torch {torch.__version__} is a build for CPUs"
        yield Check("device", "GPU", NOTE, f"none; {why}")
    yield Check("flt", "import", OK, "flt and all that it needs can be imported")


def _threads(torch: Any) -> str:
    most = torch.get_num_threads()
    if openmp.IS_GIVEN or most == 1:
        return f"{most}{' (OMP_NUM_THREADS)' if openmp.IS_GIVEN else ''}"
    if torch.cuda.is_available():
        return f"{most}, as the GPU trains"
    return f"1 to {most}; a short trial at the start of each run decides (threads=)"


def _folders(root: Path) -> Iterator[Check]:
    """Yields the folders that flt writes to, with the space on their disks."""
    try:
        cached = cache_folder()
        size = formatting.size(sum(entry.size for entry in cache.entries()))
        yield _writable("cache", cached, f"{size} of entries (flt cache)", "set FLT_CACHE to a folder of your own")
    except (InputError, OSError) as error:
        yield Check("folder", "cache", MISSING, first_line(error), "set FLT_CACHE to a folder of your own")
    yield _writable("runs", root, "", "root=<folder> writes the runs elsewhere")


def _writable(name: str, folder: Path, about: str, advice: str) -> Check:
    """Checks that a folder can be written, or made, by a file without a name, which nothing is left of."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    free = shutil.disk_usage(place).free
    found = ", ".join(filter(None, (_short(folder), about, f"{formatting.size(free)} free")))
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"flt")
    except OSError as error:
        return Check("folder", name, MISSING, f"{found}: it can't be written ({system_message(error)})", advice)
    if free < LITTLE:
        return Check("folder", name, NOTE, found, "little space is left on this disk")
    return Check("folder", name, OK, found)


def _data() -> Check:
    """Checks the folder of data files on this machine, and says which data sets of conf/ it holds."""
    given = os.environ.get("FLT_DATA")
    if not given:
        return Check("data", "FLT_DATA", NOTE, "not set", "data sets come from the hub, the digits from scikit-learn")
    folder = expand_user(given)
    if not folder.is_dir():
        return Check("data", "FLT_DATA", NOTE, "no such folder", "set FLT_DATA to a folder of data files, or unset it")
    held = []
    for name in choices("data"):
        local = _local(name)
        if local and (folder / local).is_file():
            held.append(name)
    return Check("data", "FLT_DATA", OK, f"{_short(folder)}, with {', '.join(held) or 'no data set of conf/'}")


def _local(name: str) -> str | None:
    from flt.run.compose import load_choice

    if not (config_folder() / "data" / f"{name}.yaml").is_file():
        return None
    found = load_choice("data", name).get("local")
    return str(found) if found else None


def _hub() -> Check:
    offline = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if offline:
        return Check("hub", "Hugging Face", OK, f"offline ({', '.join(offline)}): only what is in its cache is found")
    return Check("hub", "Hugging Face", OK, "models and data sets that aren't on this machine are downloaded")


def _short(path: Path) -> str:
    """Returns a path with ~ for the user's home folder, whose name is nobody's business."""
    home = Path.home()
    absolute = path.absolute()
    return f"~/{absolute.relative_to(home)}" if absolute.is_relative_to(home) else str(path)
