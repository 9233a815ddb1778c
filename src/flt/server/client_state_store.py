"""Store of the client states between rounds. A client state on disk takes memory only while its job is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flt.core.files import write_atomically
from flt.protocol.messages import JobId, decode, encode
from flt.protocol.state import ClientState

FOLDER = "clients"


class ClientStateStore(Mapping[JobId, ClientState]):
    """Mapping from a job to the client state after the job's latest accepted fit. A job with an empty state is absent.

    ``put`` stores the new state of a job as pending. ``accept`` makes the pending state valid, once the server has
    accepted the update of the same fit. With a folder, ``put`` writes a file, and the file is read when its job is in a
    cohort again. All processes, on all machines, share this folder. A file whose state was replaced isn't removed at
    once, because older checkpoints refer to the file. The file is removed together with these checkpoints.

    Args:
        folder: Folder that contains the files ``clients/<client>_<job>_<round>.safetensors``. If None, the states
            stay in memory.
        writes: True if this process writes the files. False if another process trains the same jobs and writes the
            files.
    """

    def __init__(self, folder: Path | None = None, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.files: dict[JobId, str] = {}
        """Job -> file of its state, relative to the folder."""
        self.checksums: dict[str, str] = {}
        """File -> SHA-256 of its content."""
        self.pending: dict[JobId, tuple[str, str]] = {}
        """Job -> file and checksum of its pending state. Empty without a folder."""
        self._kept: dict[JobId, ClientState] = {}
        self._new: dict[JobId, ClientState] = {}
        self._replaced: list[str] = []

    def __getitem__(self, job: JobId) -> ClientState:
        if self.folder is None:
            return self._kept[job]
        state: ClientState = decode((self.folder / self.files[job]).read_bytes(), ClientState)
        return state

    def __iter__(self) -> Iterator[JobId]:
        return iter(self._kept if self.folder is None else self.files)

    def __len__(self) -> int:
        return len(self._kept if self.folder is None else self.files)

    def put(self, job: JobId, state: ClientState, rounds: int, attempt: int = 0) -> None:
        """Stores the client state of a job after a fit, as pending.

        Args:
            job: The job that was trained.
            state: Client state of the job.
            rounds: Number of finished rounds, including this one.
            attempt: Number of earlier attempts at the round. The number is a part of the file's name, because another
                process may still be removing the files of the previous attempt.
        """
        if not state.tensors and not state.slots:
            return
        if self.folder is None:
            self._new[job] = state
            return
        suffix = f"_{attempt}" if attempt else ""
        file, data = f"{FOLDER}/{job[0]}_{job[1]}_{rounds:04d}{suffix}.safetensors", encode(state)
        if self.writes:
            (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / file, data)
        self.pending[job] = (file, hashlib.sha256(data).hexdigest())

    def accept(self, jobs: Iterable[JobId]) -> None:
        """Accepts the pending states of these jobs and discards the pending states of all others."""
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
        """Returns the files whose states were replaced since the last call."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def load(self, files: Mapping[JobId, str], checksums: Mapping[str, str]) -> None:
        """Replaces the entries of the store by those of a checkpoint.

        Args:
            files: Job -> file of its state.
            checksums: File -> SHA-256 of its content. May contain other files too.
        """
        self.files = dict(files)
        self.checksums = {file: checksums[file] for file in self.files.values()}

    def move_to(self, folder: Path) -> None:
        """Writes all states from memory to a folder. From then on, the store uses this folder."""
        kept, self._kept, self.folder = self._kept, {}, folder
        for job, state in kept.items():
            self.put(job, state, 0)
        self.accept(kept)
