"""Runs on disk: where they are, and what their files say. Nothing here imports torch."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flt.core import plain_yaml
from flt.core.errors import InputError
from flt.core.files import expand_user, system_message
from flt.core.typed import first_line
from flt.export.places import CLASSES, EXPORTS, exported_models, levels, natural

CONFIG, METRICS, REPORT = "config.yaml", "metrics.csv", "report.html"
LOCK = ".lock"
"""Name of the file in a run's folder whose lock is held by the process that trains the run."""
OWN = "own"
"""Name of the data in the configuration of a run that ``flt.fit`` started."""
NO_ROUNDS = f"{METRICS} has no rounds (it is empty or damaged)"
LARGEST = 2**28
"""Largest size of a run's files of metrics and names, in bytes."""
BEFORE = {"buffers": {"name": "keep"}}
"""Section -> its settings with which a run of an older version goes on, where these aren't the default."""
_RUN = "a run's folder, its adapter/ or model/, or last"


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """Contents of a run's files.

    Attributes:
        folder: Folder of the run.
        settings: The run's configuration, as nested dictionaries.
        history: Metrics of every finished round. Empty if no round has finished.
        classes: Task -> names of its classes. Empty if the classes have no names.
        exported: Folder of the exported models, ``adapter`` or ``model``. None if the run hasn't finished.
    """

    folder: Path
    settings: dict[str, Any]
    history: list[dict[str, float]]
    classes: dict[str, list[str]]
    exported: Path | None

    @property
    def label(self) -> str:
        """Short name of the run, see :func:`label_of`."""
        return label_of(self.folder)

    @property
    def lacks_rounds(self) -> bool:
        """True if metrics.csv is empty, or has no round although the run has exported its models."""
        path = self.folder / METRICS
        return not self.history and path.is_file() and (self.exported is not None or not path.stat().st_size)

    def setting(self, key: str, default: Any = None) -> Any:
        """Returns the value of a dotted key, or the default if the run's configuration lacks the key."""
        found: Any = self.settings
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return found


def label_of(folder: Path) -> str:
    """Returns the short name of a run: the last two parts of its folder's path, such as ``hafl/version_3``."""
    return "/".join(folder.absolute().parts[1:][-2:])  # without the root of the disk, which is a slash itself


def find_run(run: str | Path, root: str | Path = "lightning_logs") -> Path:
    """Returns the folder that a command's argument RUN names: a run's folder or an export's folder.

    Args:
        run: Path of a run's folder or of an exported model, or ``last`` for the run that was written to last.
        root: Folder of all runs, in which ``last`` is looked for.

    Raises:
        InputError: There is no such folder, or it is neither a run nor an export.
    """
    if str(run) == "last":
        runs = runs_below(root)
        if not runs:
            raise InputError.of("run", run, _RUN, f"there is no run in {Path(root).name} yet")
        return max(runs, key=_last_written)
    folder = expand_user(run)
    if not os.path.isdir(folder):
        raise InputError.of("run", run, _RUN, "there is no such folder")
    if not os.path.isfile(folder / CONFIG) and not exported_models(folder):
        inside = [path for path in runs_below(folder) if path != folder]
        why = f"there are {len(inside)} runs in it" if inside else "flt has written neither a run nor a model there"
        raise InputError.of("run", run, _RUN, why)
    return folder


def runs_below(folder: str | Path) -> list[Path]:
    """Returns the folders of all runs in a folder, sorted by path and number: the folder itself, or those inside."""
    top = expand_user(folder)
    found = [path.parent for depth in ("", "*/", "*/*/") for path in top.glob(f"{depth}{CONFIG}")]
    return sorted({path for path in found if is_run(path)}, key=lambda path: natural(str(path)))


def is_run(folder: Path) -> bool:
    """Returns whether a folder holds the configuration of a run. Folders ``version_N`` are flt's own."""
    return os.path.isfile(folder / CONFIG) and re.fullmatch(r"version_\d+", folder.absolute().name) is not None


def read_run(run: str | Path, root: str | Path = "lightning_logs") -> StoredRun:
    """Reads the files of a run.

    Args:
        run: As in :func:`find_run`. An export's folder must still be inside its run.
        root: As in :func:`find_run`.

    Raises:
        InputError: There is no such run, or one of its files is damaged.
    """
    folder = find_run(run, root)
    if not os.path.isfile(folder / CONFIG):
        folder = levels(folder)[-1].parent
        if not os.path.isfile(folder / CONFIG):
            raise InputError.of("run", run, "a run's folder, or an export in one", "it is an export outside of any run")
    settings = OmegaConf.to_container(read_settings(folder, "run"), resolve=True)  # texts as they were given
    assert isinstance(settings, dict)
    exported = next((folder / name for name in EXPORTS if exported_models(folder / name)), None)
    return StoredRun(
        folder, {str(key): value for key, value in settings.items()}, _history(folder), _classes(folder), exported
    )


def run_around(folder: Path) -> Path | None:
    """Returns the folder of the run that a run's or an export's folder belongs to. None: the export lies elsewhere.

    Args:
        folder: As :func:`find_run` or :func:`export_of` returns it.
    """
    top = levels(folder)[-1]
    places = [folder, *([top.parent] if top.name in EXPORTS else [])]
    return next((place for place in places if os.path.isfile(place / CONFIG)), None)


def export_of(run: str | Path, root: str | Path = "lightning_logs") -> Path:
    """Returns the folder of a finished run's export, or the export that the argument itself names.

    Raises:
        InputError: There is no such run or export, or the run hasn't finished.
    """
    folder = find_run(run, root)
    places = [folder, *(folder / name for name in EXPORTS)]
    found = next((place for place in places if exported_models(place)), None)
    if found is None:
        why = "it has no adapter/ or model/; flt train resume=<its folder> goes on with it, or writes them again"
        raise InputError.of("run", run, _RUN, why)
    return found


def read_settings(folder: Path, key: str) -> DictConfig:
    """Returns the configuration in a run's folder.

    Args:
        folder: Folder of the run.
        key: Key that named the folder. An error's line begins with it.

    Raises:
        InputError: The file can't be read, or isn't what flt wrote.
    """
    try:
        saved = OmegaConf.create(plain_yaml.read(folder / CONFIG))
    except AssertionError:  # of OmegaConf, for a document that is a number
        saved = None
    except (OSError, YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        why = system_message(error) if isinstance(error, OSError) else first_line(error)
        raise InputError.of(key, folder, "a run with the config.yaml that flt wrote", why) from error
    if not isinstance(saved, DictConfig):
        raise InputError.of(key, folder, "a run with the config.yaml that flt wrote")
    return saved


def versions(parent: Path) -> list[Path]:
    """Returns the subfolders ``version_N`` of ``parent``, sorted by N."""
    folders = [path for path in parent.glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("version_")))


def _history(folder: Path) -> list[dict[str, float]]:
    text = _read(folder / METRICS)
    try:
        rows = list(csv.DictReader(text.splitlines()))
        history = [{key: float(value) for key, value in row.items() if value} for row in rows]
        if not all(row.get("round", 1.0).is_integer() for row in history):
            raise ValueError("a number of a round isn't whole")
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError.of("run", folder, "a run with the metrics.csv that flt wrote", first_line(error)) from error
    return history


def _classes(folder: Path) -> dict[str, list[str]]:
    text = _read(folder / CLASSES)
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError.of("run", folder, f"a run with the {CLASSES} that flt wrote", first_line(error)) from error
    if not isinstance(found, dict) or not all(_is_names(names) for names in found.values()):
        raise InputError.of("run", folder, f"a run with the {CLASSES} that flt wrote")
    return found


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _read(path: Path) -> str:
    """Returns the text of a run's file, which is empty if there is no file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise InputError.of("run", path.parent, f"a {path.name} of at most {LARGEST} bytes")
        return data.decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = system_message(error) if isinstance(error, OSError) else first_line(error)
        raise InputError.of("run", path.parent, f"a run with a {path.name} that can be read", why) from error


def _last_written(folder: Path) -> tuple[float, list[str | int]]:
    files = (folder / METRICS, folder / CONFIG)
    return max(path.stat().st_mtime for path in files if path.is_file()), natural(str(folder))
