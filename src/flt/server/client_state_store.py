"""Store of the client states between rounds. A client state on disk takes memory only while its job is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flt.core.errors import InputError, OtherRunError
from flt.core.files import PRIVATE_FILE, make_private, remove_file, reported, write_atomically
from flt.protocol.messages import JobId, decode, encode
from flt.protocol.state import ClientState, StoredClientState

FOLDER = "clients"
READ, WRITTEN = "a folder that stays and can be read", "a folder that stays and can be written"


def client_state_of(data: bytes, file: str, run: str, job: JobId) -> ClientState:
    """Returns the client state from the content of a file.

    Files of checkpoints of format 2 contain only the state. They are accepted, although they name no run and no job.

    Args:
        data: Content of the file.
        file: Name of the file, for errors.
        run: Identity of the run that must have written the file.
        job: The job whose state it must be.

    Raises:
        InputError: The file doesn't contain a client state.
        OtherRunError: The state is of another run or another job.
    """
    stored = decode(data)
    if isinstance(stored, ClientState):
        return stored
    if not isinstance(stored, StoredClientState):
        raise InputError.of(file, type(stored).__name__, "a client state")
    if stored.run != run:
        raise OtherRunError.of(file, "<another run's>", "a client state of this run")
    if stored.job != job:
        raise OtherRunError.of(file, f"<of job {stored.job}>", f"the client state of job {job}")
    return stored.state


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
        run: Identity of the run, which each file contains.
    """

    def __init__(self, folder: Path | None = None, writes: bool = True, run: str = "") -> None:
        self.folder, self.writes, self.run = folder, writes, run
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
        file = self.files[job]
        with reported("client state", file, READ):
            data = (self.folder / file).read_bytes()
        return client_state_of(data, file, self.run, job)

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
        file = f"{FOLDER}/{job[0]}_{job[1]}_{rounds:04d}{suffix}.safetensors"
        data = encode(StoredClientState(self.run, job, state))
        if self.writes:
            with reported("client state", file, WRITTEN):
                make_private(self.folder / FOLDER)
                write_atomically(self.folder / file, data, PRIVATE_FILE)
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
            remove_file(self.folder / file)
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

    def move_to(self, folder: Path, run: str = "") -> None:
        """Writes all states from memory to a folder. From then on, the store uses this folder and this identity."""
        kept, self._kept, self.folder, self.run = self._kept, {}, folder, run
        for job, state in kept.items():
            self.put(job, state, 0)
        self.accept(kept)
