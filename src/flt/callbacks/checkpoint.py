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

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flt.callbacks.checkpoint_files import (
    CLIENT_STATE,
    FORMAT,
    NAMES,
    Snapshot,
    check_settings,
    files_of,
    identity,
    manifests_of,
    newest,
    remove_state,
    run_of,
    sealed,
)
from flt.core.errors import InputError
from flt.core.files import (
    PRIVATE_FILE,
    check_no_link,
    make_private,
    remove_file,
    remove_leftovers,
    reported,
    write_atomically,
)
from flt.protocol.messages import encode
from flt.server.callback import FedCallback
from flt.server.client_state_store import FOLDER, ClientStateStore
from flt.server.failure_policy import RoundFailedError
from flt.server.federator import Federator
from flt.server.state_validation import check_states, restore_callback

END = "_end"
"""Suffix in the name of the server-state file that is written at the end of a run."""


@dataclasses.dataclass
class CheckpointConfig:
    """Settings of the checkpoints. ``keep`` is the number of checkpoints to keep."""

    keep: int


class Checkpoint(FedCallback):
    """Writes a checkpoint after each round and removes old checkpoints.

    Only the owner of the folder can read it. Files of others in the folder stay as they are.

    Args:
        folder: Folder of the checkpoints. It is created at the start of the run.
        keep: Number of checkpoints to keep.
        settings: Settings of the run that a resume may not change. A checkpoint with other settings isn't restored.
    """

    def __init__(self, folder: Path, keep: int = 2, settings: Mapping[str, Any] | None = None) -> None:
        if keep < 1:
            raise InputError.of("checkpoint.keep", keep, "an integer >= 1")
        self.folder, self.keep = folder, keep
        self.settings: dict[str, Any] = json.loads(json.dumps(settings or {}))  # as they will be read from a file
        self._last: str | None = None  # name of the newest manifest that this process wrote, if any
        self._own: set[str] = set()  # names of the manifests in the folder that are known to be of this run
        self._replaced: dict[str, list[str]] = {}  # manifest -> client-state files that no newer manifest names

    def on_fit_start(self, federator: Federator) -> None:
        """Creates the folder, removes what killed processes left in it, and moves client states from memory into it.

        Raises:
            InputError: The folder, or the one of the client states, is a link or can't be written.
        """
        with self._reported():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._prepare()
            remove_leftovers(self.folder, NAMES)
            remove_leftovers(self.folder / FOLDER, CLIENT_STATE)
        if federator.client_states.folder is None:
            federator.client_states.move_to(self.folder, self.run)

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
        if resumable and not federator.state.rounds and not manifests_of(self.folder):
            self._write_round(federator)

    def restore(self, federator: Federator) -> None:
        """Restores a federator from the newest intact checkpoint. Does nothing if there are no checkpoints.

        Raises:
            InputError: All checkpoints are damaged, the newest intact one doesn't fit the federator's model or number
                of rounds, or the folder is a link.
            OtherRunError: The newest intact checkpoint, or a client state that it names, is of another run.
        """
        self._check_links()
        checkpoint = newest(self.folder)
        if checkpoint is None:
            return
        snapshot, manifest = checkpoint
        check_settings(manifest, self.settings)
        if snapshot.server.rounds > federator.rounds:
            done = snapshot.server.rounds
            raise InputError.of("rounds", federator.rounds, f"an integer >= {done}", f"{done} have been run")
        settings = manifest.get("run") or self.settings
        client_states = ClientStateStore(self.folder, federator.client_states.writes, identity(settings))
        client_states.load({(client, index): file for client, index, file in manifest["private"]}, manifest["files"])
        check_states(snapshot.server, client_states, federator)
        federator.state, federator.history = snapshot.server, list(snapshot.history)
        for key, callback in _keyed(federator.callbacks).items():
            if key in snapshot.callbacks:
                restore_callback(key, callback, snapshot.callbacks[key])
        # The run keeps its identity, even if a later version of flt has more settings.
        self.settings = settings
        federator.client_states = client_states

    @property
    def run(self) -> str:
        """Identity of the run, which each file of a checkpoint contains."""
        return identity(self.settings)

    def _reported(self) -> contextlib.AbstractContextManager[None]:
        allowed = "a folder that stays and can be written; resume=last then goes on after the last checkpoint"
        return reported("checkpoints", self.folder.absolute().parent.name, allowed)

    def _check_links(self) -> None:
        check_no_link(self.folder)
        check_no_link(self.folder / FOLDER, f"{self.folder.name}/{FOLDER}")

    def _prepare(self) -> None:
        """Creates the folder if it is missing. The run's folder itself isn't created again if somebody removed it."""
        self._check_links()
        make_private(self.folder)

    def _write_round(self, federator: Federator, suffix: str = "") -> None:
        with self._reported():
            self._prepare()
            self._write_files(federator, suffix)

    def _write_files(self, federator: Federator, suffix: str) -> None:
        kept = federator.client_states
        states = {key: callback.state_dict() for key, callback in _keyed(federator.callbacks).items()}
        snapshot = Snapshot(federator.state, tuple(federator.history), states, self.run)
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
            "run": self.settings,
        }
        self._write(f"{name}.json", json.dumps(sealed(manifest), indent=1).encode())
        if self._last is not None:
            self._replaced.setdefault(self._last, []).extend(kept.pop_replaced_files())
        self._tidy(name, whole=self._last is None or bool(suffix))
        self._last = name

    def _write(self, file: str, data: bytes) -> str:
        write_atomically(self.folder / file, data, PRIVATE_FILE)
        return hashlib.sha256(data).hexdigest()

    def _tidy(self, last: str, whole: bool) -> None:
        """Removes old manifests of this run, and the files of this run that no remaining manifest of it names.

        Manifests are removed before the files that they name, so that no manifest ever names a missing file. Manifests
        newer than ``last`` are removed too. A file that they name is damaged, since the run would otherwise have
        resumed from them. Files that this run didn't write stay, and so do links and folders. A damaged manifest of an
        earlier process stays until the run writes this manifest again, because it doesn't say whose it is.

        Args:
            last: Name of the manifest that was just written.
            whole: If True, compares every file of the folder with the manifests. The comparison also finds files of
                killed processes, but is slow for many clients. If False, removes only files that the process replaced.
        """
        if whole:
            self._own |= {path.stem for path in manifests_of(self.folder) if run_of(path) in ("", self.run)}
        self._own.add(last)
        manifests = [path for path in manifests_of(self.folder) if path.stem in self._own]
        done = [path.stem for path in manifests].index(last) + 1
        kept = manifests[max(0, done - self.keep) : done]
        written = {file for path in manifests for file in files_of(path, self.run)} if whole else set()
        for path in manifests:
            if path not in kept:
                self._remove(path)
        if whole:
            named = {file for path in kept for file in files_of(path, self.run)}
            for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(f"{FOLDER}/*.safetensors")]:
                file = path.relative_to(self.folder).as_posix()
                if file not in named:
                    remove_state(path, self.run, named=file in written)
            return
        names = {path.stem for path in kept}
        for manifest in [name for name in self._replaced if name not in names]:
            for file in self._replaced.pop(manifest):
                remove_file(self.folder / file)

    def _remove(self, manifest: Path) -> None:
        """Removes a manifest of this run and the server state that it names. Keeps what others have put in its place.

        A damaged manifest is removed, because it is of this run: this process has written it, or read it before.
        """
        self._own.remove(manifest.stem)
        if run_of(manifest) not in ("", self.run, None):
            return
        files = files_of(manifest, self.run)
        manifest.unlink()
        for suffix in ("", END):
            file = f"{manifest.stem}{suffix}.safetensors"
            remove_state(self.folder / file, self.run, named=file in files)


def _keyed(callbacks: Iterable[FedCallback]) -> dict[str, FedCallback]:
    """Returns "<state key> <number>" -> callback. Callbacks with the same state key are numbered from 0."""
    keyed: dict[str, FedCallback] = {}
    for callback in callbacks:
        name = callback.state_key or type(callback).__name__
        number = sum(key.rpartition(" ")[0] == name for key in keyed)
        keyed[f"{name} {number}"] = callback
    return keyed
