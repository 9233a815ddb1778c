"""Checkpoints, written atomically after every round. A resumed run ends bit-identical to an uninterrupted run.

::

    checkpoints/
        round_0003.safetensors            server state, metrics of all rounds, states of the callbacks
        clients/4_0_0003.safetensors      client state of client 4, job 0, after round 3
        round_0003.json                   manifest: names and checksums of the files above; written last

A checkpoint is valid once its manifest exists. A resumed run reads only the client states that the manifest names. An
unfinished round may leave newer client states behind. If a resumed run read them, local fits would be applied twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flt.core.errors import InputError
from flt.core.files import system_message, write_atomically
from flt.protocol.field_types import fits
from flt.protocol.messages import decode, encode, message
from flt.protocol.state import ServerState
from flt.server.callback import FedCallback
from flt.server.client_state_store import FOLDER, ClientStateStore
from flt.server.failure_policy import RoundFailedError
from flt.server.federator import Federator
from flt.server.state_validation import check_states, restore_callback

FORMAT = 2
_NAME = re.compile(rf"({FOLDER}/)?[0-9a-z_]+\.safetensors")
END = "_end"
"""Suffix in the name of the server-state file that is written at the end of a run."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class CheckpointConfig:
    """Settings of the checkpoints. ``keep`` is the number of checkpoints to keep."""

    keep: int


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


class Checkpoint(FedCallback):
    """Writes a checkpoint after each round and removes old checkpoints.

    Args:
        folder: Folder of the checkpoints. It is created with the first checkpoint.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise InputError.of("checkpoint.keep", keep, "an integer >= 1")
        self.folder, self.keep = folder, keep
        self._last: str | None = None  # name of the newest manifest that this process wrote, if any
        self._replaced: dict[str, list[str]] = {}  # manifest -> client-state files that no newer manifest names

    def on_fit_start(self, federator: Federator) -> None:
        """Moves the client states from memory into the folder."""
        if federator.client_states.folder is None:
            federator.client_states.move_to(self.folder)

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Writes the round's checkpoint, after all callbacks have logged their metrics."""
        self._write_round(federator)

    def on_fit_end(self, federator: Federator) -> None:
        """Writes the last checkpoint again, with the metrics that were measured after the last round."""
        if federator.history:
            self._write_round(federator, END)  # a new file name, so that a kill leaves the old file intact

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Writes a checkpoint if an interrupt or a failed round ends the run before its first checkpoint."""
        resumable = isinstance(exception, KeyboardInterrupt | RoundFailedError)
        if resumable and not federator.state.rounds and not _manifests(self.folder):
            self._write_round(federator)

    def restore(self, federator: Federator) -> None:
        """Restores a federator from the newest intact checkpoint. Does nothing if there are no checkpoints.

        Raises:
            InputError: All checkpoints are damaged, or the newest intact one doesn't fit the federator's model or
                number of rounds.
        """
        checkpoint = newest(self.folder)
        if checkpoint is None:
            return
        snapshot, manifest = checkpoint
        if snapshot.server.rounds > federator.rounds:
            done = snapshot.server.rounds
            raise InputError.of("rounds", federator.rounds, f"an integer >= {done}", f"{done} have been run")
        files = {(client, index): file for client, index, file in manifest["private"]}
        check_states(snapshot.server, {job: self.folder / file for job, file in files.items()}, federator)
        federator.state, federator.history = snapshot.server, list(snapshot.history)
        for key, callback in _keyed(federator.callbacks).items():
            if key in snapshot.callbacks:
                restore_callback(key, callback, snapshot.callbacks[key])
        federator.client_states = ClientStateStore(self.folder, federator.client_states.writes)
        federator.client_states.load(files, manifest["files"])

    def _write_round(self, federator: Federator, suffix: str = "") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = federator.client_states
        states = {key: callback.state_dict() for key, callback in _keyed(federator.callbacks).items()}
        snapshot = Snapshot(federator.state, tuple(federator.history), states)
        name = f"round_{federator.state.rounds:04d}"
        file = f"{name}{suffix}.safetensors"
        files = {file: self._write(file, encode(snapshot))}
        files |= {file: kept.checksums[file] for file in kept.files.values()}
        private = [[*job, file] for job, file in sorted(kept.files.items())]
        manifest = {
            "format": FORMAT,
            "round": federator.state.rounds,
            "state": file,
            "files": files,
            "private": private,
        }
        write_atomically(self.folder / f"{name}.json", json.dumps(sealed(manifest), indent=1).encode())
        if self._last is not None:
            self._replaced.setdefault(self._last, []).extend(kept.pop_replaced_files())
        self._tidy(name, whole=self._last is None or bool(suffix))
        self._last = name

    def _write(self, file: str, data: bytes) -> str:
        write_atomically(self.folder / file, data)
        return hashlib.sha256(data).hexdigest()

    def _tidy(self, last: str, whole: bool) -> None:
        """Removes old manifests and the files that no remaining manifest names.

        Manifests are removed before the files that they name, so that no manifest ever names a missing file. Manifests
        newer than ``last`` are removed too. They are damaged, since the run would otherwise have resumed from them.

        Args:
            last: Name of the manifest that was just written.
            whole: If True, compares every file of the folder with the manifests. The comparison also finds files of
                killed processes, but is slow for many clients. If False, removes only files that the process replaced.
        """
        manifests = _manifests(self.folder)
        done = [path.stem for path in manifests].index(last) + 1
        kept = manifests[max(0, done - self.keep) : done]
        for path in set(manifests) - set(kept):
            _remove(path)
        if whole:
            named = {file for path in kept for file in _files(path)}
            for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(f"{FOLDER}/*")]:
                if path.relative_to(self.folder).as_posix() not in named:
                    _remove(path)
            return
        names = {path.stem for path in kept}
        for path in self.folder.glob("round_*.safetensors"):
            if path.stem.removesuffix(END) not in names:
                _remove(path)
        for manifest in [name for name in self._replaced if name not in names]:
            for file in self._replaced.pop(manifest):
                (self.folder / file).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Removes a file, and leaves a folder of this name alone, which flt hasn't made."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()


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
    except (ValueError, RecursionError) as error:
        raise InputError.of(path.name, "<damaged>", "the bytes that were written", str(error)) from error
    if not isinstance(manifest, dict):
        raise InputError.of(path.name, "<damaged>", "a manifest of flt")
    whole = manifest == sealed(manifest)
    # A manifest in an old format has no checksum.
    if manifest.get("format", FORMAT) != FORMAT and (whole or "checksum" not in manifest):
        why = f"{path.name} was written by another version of flt"
        raise VersionError.of("checkpoint format", manifest["format"], f"{FORMAT}, which this version reads", why)
    if not whole:
        raise InputError.of(path.name, "<damaged>", "the bytes that were written")
    return manifest


def _files(path: Path) -> list[str]:
    """Returns the file names in a manifest, or an empty list if the manifest is damaged."""
    try:
        return list(_read(path)["files"])
    except (OSError, InputError):
        return []


def _manifests(folder: Path) -> list[Path]:
    """Returns the manifests, oldest first. Shorter names come first, because names become longer after round 9999."""
    return sorted(folder.glob("round_*.json"), key=lambda path: (len(path.name), path.name))


def newest(folder: Path) -> tuple[Snapshot, dict[str, Any]] | None:
    """Returns the newest checkpoint whose files are all present and intact, with its manifest.

    A damaged checkpoint is skipped with a warning.

    Returns:
        The snapshot and its manifest, or None if no checkpoint has been written yet.

    Raises:
        InputError: None of the existing checkpoints can be used. The run isn't started anew, because a new start would
            remove what is left of these checkpoints.
        VersionError: Another version of flt wrote a checkpoint. An older checkpoint isn't tried in this case.
    """
    name = folder.absolute().parent.name
    try:
        os.listdir(folder)  # unlike glob, raises an error if the folder can't be read
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError.of("resume", name, "a run whose checkpoints can be read", system_message(error)) from error
    manifests = _manifests(folder)
    for older, path in reversed(list(enumerate(manifests))):
        try:
            manifest = _read(path)
            return _snapshot(folder, path.name, manifest), manifest
        except VersionError:
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
    for file, checksum in manifest["files"].items():
        if not _NAME.fullmatch(file):
            raise InputError.of(name, file, "names of files that flt writes")
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != checksum:
            raise InputError.of(file, "<damaged>", "the bytes that were written")
    if not fits(tuple(map(tuple, manifest["private"])), tuple[tuple[int, int, str], ...]):
        raise InputError.of(name, "private", "[[client, job, file], ...]")
    for file in (manifest["state"], *(file for _, _, file in manifest["private"])):
        if file not in manifest["files"]:
            raise InputError.of(name, file, "files with a checksum")
    snapshot: Snapshot = decode((folder / manifest["state"]).read_bytes(), Snapshot)
    return snapshot


def _keyed(callbacks: Iterable[FedCallback]) -> dict[str, FedCallback]:
    """Returns "<state key> <number>" -> callback. Callbacks with the same state key are numbered from 0."""
    keyed: dict[str, FedCallback] = {}
    for callback in callbacks:
        name = callback.state_key or type(callback).__name__
        number = sum(key.rpartition(" ")[0] == name for key in keyed)
        keyed[f"{name} {number}"] = callback
    return keyed
