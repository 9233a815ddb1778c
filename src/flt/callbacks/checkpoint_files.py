"""Files of the checkpoints: their names, their checksums, and the run that they belong to.

A checkpoint belongs to a run with certain settings, those that a resume may not change. Its manifest contains these
settings. The digest of the settings is the run's identity. The server state and each client state contain the identity,
and a client state also names its job. The state of another run or of another job is therefore refused, even if the
manifest lists it with the right checksum. Checkpoints of format 2 have no identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flt.core.errors import InputError, OtherRunError
from flt.core.files import is_regular, remove_file, system_message
from flt.protocol.codec import field_of
from flt.protocol.field_types import fits
from flt.protocol.messages import decode, message
from flt.protocol.state import ServerState
from flt.server.client_state_store import FOLDER, client_state_of

FORMAT = 3
READABLE = (FORMAT, 2)
"""Formats of checkpoints that this version reads."""
_MANIFEST = re.compile(r"round_\d{4,}\.json")
STATE = re.compile(r"round_\d{4,}(_end)?\.safetensors")
CLIENT_STATE = re.compile(r"\d+_\d+_\d{4,}(_\d+)?\.safetensors")
NAMES = re.compile(f"{_MANIFEST.pattern}|{STATE.pattern}")
"""Pattern of the names of files in the folder of the checkpoints."""
_NAME = re.compile(rf"({FOLDER}/)?[0-9a-z_]+\.safetensors")
_log = logging.getLogger(__name__)


class VersionError(InputError):
    """Error for a checkpoint that another version of flt wrote."""


@message
@dataclasses.dataclass(frozen=True)
class Snapshot:
    """State of a federation between two rounds. It doesn't contain the client states, which have their own files."""

    server: ServerState
    history: tuple[dict[str, float], ...]
    callbacks: dict[str, dict[str, Any]]
    """Key of a callback -> its state. The key, such as ``Budget 0``, is the callback's state key and a number."""
    run: str = ""
    """Identity of the run. Empty in checkpoints of format 2, and in those of a run without an identity."""


def identity(settings: Mapping[str, Any]) -> str:
    """Returns the identity of a run with these settings: a digest, or an empty text if there are no settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest() if settings else ""


def check_settings(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Checks that a checkpoint was written by a run with the same settings.

    Settings that only one of them has aren't compared, because another version of flt may have other keys.

    Raises:
        OtherRunError: Settings differ. The message lists them.
    """
    written = manifest.get("run", {})
    differing = [key for key in sorted(settings.keys() & written.keys()) if settings[key] != written[key]]
    if differing:
        theirs, ours = (", ".join(f"{key}={of[key]}" for key in differing) for of in (written, settings))
        why = f"it is of a run with {theirs}"
        raise OtherRunError.of("resume", manifest["state"], f"one of this run, with {ours}", why)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest with the entry ``checksum``, which is the checksum of all other entries."""
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    return {**body, "checksum": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def _read(path: Path) -> dict[str, Any]:
    """Reads a manifest and verifies its checksum.

    Raises:
        InputError: The manifest is damaged, or another version of flt wrote it.
        OSError: The file can't be read.
    """
    try:
        manifest = json.loads(path.read_text())
        whole = isinstance(manifest, dict) and manifest == sealed(manifest)
    except (ValueError, RecursionError) as error:
        raise InputError.of(path.name, "<damaged>", "the bytes that were written", str(error)) from error
    if not isinstance(manifest, dict):
        raise InputError.of(path.name, "<damaged>", "a manifest of flt")
    # A manifest in an old format has no checksum.
    if manifest.get("format", FORMAT) not in READABLE and (whole or "checksum" not in manifest):
        why, known = f"{path.name} was written by another version of flt", " and ".join(map(str, READABLE))
        raise VersionError.of("checkpoint format", manifest["format"], f"{known}, which this version reads", why)
    if not whole:
        raise InputError.of(path.name, "<damaged>", "the bytes that were written")
    return manifest


def run_of(path: Path) -> str | None:
    """Returns the identity of the run that wrote a manifest. None if this isn't known, as for a damaged manifest.

    The identity is empty for a manifest of format 2, and for one of a run without an identity.
    """
    try:
        return identity(_read(path).get("run", {}))
    except (OSError, InputError, TypeError):
        return None


def files_of(path: Path, run: str) -> list[str]:
    """Returns the file names in a manifest. Returns an empty list if the manifest is damaged or of another run.

    Args:
        path: The manifest.
        run: Identity of the run. A manifest of format 2 has none and is accepted.
    """
    try:
        manifest = _read(path)
        return list(manifest["files"]) if identity(manifest.get("run", {})) in ("", run) else []
    except (OSError, InputError, KeyError, TypeError):
        return []


def manifests_of(folder: Path) -> list[Path]:
    """Returns the manifests, oldest first. Shorter names come first, because names become longer after round 9999."""
    found = (path for path in folder.glob("round_*.json") if _MANIFEST.fullmatch(path.name) and is_regular(path))
    return sorted(found, key=lambda path: (len(path.name), path.name))


def newest(folder: Path) -> tuple[Snapshot, dict[str, Any]] | None:
    """Returns the newest checkpoint whose files are all present and intact, with its manifest.

    A damaged checkpoint is skipped with a warning.

    Returns:
        The snapshot and its manifest, or None if no checkpoint has been written yet.

    Raises:
        InputError: None of the existing checkpoints can be used. The run isn't started anew, because a new start would
            remove what is left of these checkpoints.
        VersionError: Another version of flt wrote a checkpoint. An older checkpoint isn't tried in this case.
        OtherRunError: A file of a checkpoint is of another run or another job. An older checkpoint isn't tried.
    """
    name = folder.absolute().parent.name
    try:
        os.listdir(folder)  # unlike glob, raises an error if the folder can't be read
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError.of("resume", name, "a run whose checkpoints can be read", system_message(error)) from error
    manifests = manifests_of(folder)
    for older, path in reversed(list(enumerate(manifests))):
        try:
            manifest = _read(path)
            return _snapshot(folder, path.name, manifest), manifest
        except (VersionError, OtherRunError):
            raise
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            why = system_message(error) if isinstance(error, OSError) else error
            then = ", trying the one before it" if older else ""
            _log.warning("checkpoint %s can't be used%s: %s", path.name, then, why)
    if manifests:
        allowed = "a new run, or this one with a whole copy of one of them"
        why = f"none of its {len(manifests)} checkpoints can be used, and nothing was changed"
        raise InputError.of("resume", name, allowed, why)
    return None


def _snapshot(folder: Path, name: str, manifest: dict[str, Any]) -> Snapshot:
    """Verifies all files that a manifest names, and reads the snapshot."""
    if not isinstance(manifest.get("run", {}), dict):
        raise InputError.of(name, "<damaged>", "settings of a run")
    if not fits(tuple(map(tuple, manifest["private"])), tuple[tuple[int, int, str], ...]):
        raise InputError.of(name, "private", "[[client, job, file], ...]")
    run, jobs = identity(manifest.get("run", {})), {file: (client, job) for client, job, file in manifest["private"]}
    for file in (manifest["state"], *jobs):
        if file not in manifest["files"]:
            raise InputError.of(name, file, "files with a checksum")
    for file, checksum in manifest["files"].items():
        if not _NAME.fullmatch(file):
            raise InputError.of(name, file, "names of files that flt writes")
        data = (folder / file).read_bytes()
        if hashlib.sha256(data).hexdigest() != checksum:
            raise InputError.of(file, "<damaged>", "the bytes that were written")
        if file in jobs:
            client_state_of(data, file, run, jobs[file])
    snapshot: Snapshot = decode((folder / manifest["state"]).read_bytes(), Snapshot)
    if snapshot.run != run:
        raise OtherRunError.of(manifest["state"], "<another run's>", f"the state of the run that {name} is of")
    return snapshot


def written_by(path: Path) -> str | None:
    """Returns the identity of the run that wrote a file of a checkpoint. None if flt didn't write the file."""
    names = CLIENT_STATE if path.parent.name == FOLDER else STATE
    if not names.fullmatch(path.name) or not is_regular(path):
        return None
    try:
        run = field_of(path, "run")
    except (OSError, InputError):
        return None
    return run if isinstance(run, str) else None


def remove_state(path: Path, run: str, named: bool) -> None:
    """Removes a server state or client state of a run. Does nothing to a file of others.

    Args:
        path: The file.
        run: Identity of the run.
        named: Whether a manifest of the run names the file. Such a file may also be damaged, or have no identity.
    """
    names = CLIENT_STATE if path.parent.name == FOLDER else STATE
    if names.fullmatch(path.name) and written_by(path) in ((run, "", None) if named else (run,)):
        remove_file(path)
