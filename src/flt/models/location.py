"""Location of a pre-trained model: a folder, an installed package, the Hugging Face hub, or the cache of the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from flt.core.errors import InputError
from flt.core.files import expand_user
from flt.core.quiet import quiet_transformers

log = logging.getLogger(__name__)

LOADABLE = "a folder written by save_pretrained, or a hub id"
OFFLINE = f"{LOADABLE} whose files are in the local cache (with a network: hf download <id>)"


def locate(path: str, package: str | None = None) -> tuple[str, bool]:
    """Returns the argument for from_pretrained, and whether from_pretrained must use local files only.

    Args:
        path: A local folder, or a hub id.
        package: A folder inside a Python package, such as ``name/folder``. If the package is installed and has this
            folder, the folder is used instead of path. If None, path is used.

    Raises:
        InputError: path is neither a folder nor the id of a model on the hub.
    """
    package_folder = _in_package(package) if package else None
    folder = package_folder or expand_user(path)
    if os.path.isdir(folder):  # Path.is_dir would raise for an invalid name
        return str(folder), True
    try:
        validate_repo_id(path)
    except HFValidationError as error:
        raise InputError.of("model.path", path, LOADABLE, "no such folder, and no hub id") from error
    return path, not _on_the_hub(path)


def _in_package(package: str) -> Path | None:
    """Returns a folder inside an installed package, or None if there is no such folder. The package isn't imported."""
    name, _, inner = package.partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    locations = (spec.submodule_search_locations or []) if spec else []
    return next((Path(location) / inner for location in locations if os.path.isdir(Path(location) / inner)), None)


def _on_the_hub(path: str) -> bool:
    """Returns whether the hub has the model. Returns False if the hub can't be reached.

    The function sends one request with a timeout of 5 s. Without this check, from_pretrained would retry for half a
    minute if there were no network.

    Raises:
        InputError: The hub has no such public model.
    """
    try:
        huggingface_hub.HfApi().model_info(path, timeout=5)
    except RepositoryNotFoundError as error:
        why = "no such folder, and the hub has no such public model (a private one needs: hf auth login)"
        raise InputError.of("model.path", path, LOADABLE, why) from error
    except Exception as error:  # any error of the HTTP client: the local cache may still have the model
        log.debug("the hub can't be reached: %s", error)
        return False
    return True


@contextlib.contextmanager
def one_line_errors(source: str, allowed: str = LOADABLE) -> Iterator[None]:
    """Turns any exception inside the context into a one-line InputError.

    The libraries that read the files raise many different exceptions for a broken or missing file.

    Args:
        source: The model's folder or hub id, for the message.
        allowed: Allowed values, for the message.
    """
    try:
        with quiet_transformers():
            yield
    except InputError:
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError.of("model.path", source, allowed, why.rstrip(".")) from error
