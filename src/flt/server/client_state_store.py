"""Private states of jobs between their rounds: on disk, so that a client at rest takes no memory for its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flt.core.files import write_atomically
from flt.protocol.codec import decode, encode
from flt.protocol.messages import JobId
from flt.protocol.state import ClientState

FOLDER = "clients"


class ClientStateStore(Mapping[JobId, ClientState]):
    """Job -> what it keeps from its last accepted fit; a job that keeps nothing isn't there.

    A state that has just come out of a fit is ``put``, and counts once its update was ``accept``-ed. With a folder,
    which the processes of all hosts share, it is written when it is put, and read when its job is in a cohort again.
    Files that were replaced stay, since older checkpoints name them, until the checkpoints remove them.

    Args:
        folder: Where the states go, as ``clients/<client>_<job>_<round>.safetensors``; None: they stay in memory.
        writes: Whether this process writes them; else another one does, that trains the same.
    """

    def __init__(self, folder: Path | None = None, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.files: dict[JobId, str] = {}
        """Job -> the file of its state, below the folder."""
        self.checksums: dict[str, str] = {}
        """File -> SHA-256."""
        self.pending: dict[JobId, tuple[str, str]] = {}
        """Job -> file and checksum, of fits whose updates haven't been accepted."""
        self._kept: dict[JobId, ClientState] = {}
        self._new: dict[JobId, ClientState] = {}
        self._replaced: list[str] = []

    def __getitem__(self, job: JobId) -> ClientState:
        if self.folder is None:
            return self._kept[job]
        state: ClientState = decode((self.folder / self.files[job]).read_bytes())
        return state

    def __iter__(self) -> Iterator[JobId]:
        return iter(self._kept if self.folder is None else self.files)

    def __len__(self) -> int:
        return len(self._kept if self.folder is None else self.files)

    def put(self, job: JobId, state: ClientState, rounds: int, attempt: int = 0) -> None:
        """Keeps what came out of a fit, apart from what counts.

        Args:
            job: Whose fit.
            state: What stays on its client.
            rounds: Rounds finished, with this one.
            attempt: How often the round has been begun before: another process may still remove the files of the last.
        """
        if not state.tensors and not state.slots:
            return
        if self.folder is None:
            self._new[job] = state
            return
        again = f"_{attempt}" if attempt else ""
        file, data = f"{FOLDER}/{job[0]}_{job[1]}_{rounds:04d}{again}.safetensors", encode(state)
        if self.writes:
            (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / file, data)
        self.pending[job] = (file, hashlib.sha256(data).hexdigest())

    def accept(self, jobs: Iterable[JobId]) -> None:
        """Lets what was put for these jobs count, and forgets what was put for others."""
        for job in jobs:
            if job in self._new:
                self._kept[job] = self._new[job]
            if job in self.pending:
                if job in self.files:
                    self._replaced.append(self.files[job])
                    del self.checksums[self.files[job]]
                self.files[job], checksum = self.pending.pop(job)
                self.checksums[self.files[job]] = checksum
        self._new = {}
        for file, _ in self.pending.values():
            assert self.folder is not None, "only files are pending"
            (self.folder / file).unlink(missing_ok=True)
        self.pending = {}

    def pop_replaced_files(self) -> list[str]:
        """The files that have been replaced since this was last asked."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def load(self, files: Mapping[JobId, str], checksums: Mapping[str, str]) -> None:
        """Takes the states that a checkpoint names.

        Args:
            files: Job -> the file of its state.
            checksums: File -> SHA-256, of these and perhaps others.
        """
        self.files = dict(files)
        self.checksums = {file: checksums[file] for file in self.files.values()}

    def move_to(self, folder: Path) -> None:
        """Writes what is in memory into a folder, and keeps it there from now on."""
        kept, self._kept, self.folder = self._kept, {}, folder
        for job, state in kept.items():
            self.put(job, state, 0)
        self.accept(kept)
