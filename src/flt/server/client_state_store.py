"""Store of private client states between rounds: on disk, so that only the clients in training take memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flt.core.files import write_atomically
from flt.protocol.messages import JobId
from flt.protocol.state import ClientState
from flt.protocol.wire_format import decode, encode

FOLDER = "clients"


class ClientStateStore(Mapping[JobId, ClientState]):
    """Job -> private state after its last accepted fit; a job without private tensors has no entry.

    ``put`` stores a new state apart, and ``accept`` makes it valid once the update of the same fit is accepted. With a
    folder, which the processes of all hosts share, ``put`` writes a file, and the state is read again when its job is
    next in a cohort. Replaced files remain until the checkpoints remove them, since older checkpoints name them.

    Args:
        folder: Folder of the files ``clients/<client>_<job>_<round>.safetensors``; None: states stay in memory.
        writes: True if this process writes the files; False if another process trains the same jobs and writes them.
    """

    def __init__(self, folder: Path | None = None, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.files: dict[JobId, str] = {}
        """Job -> file of its state, relative to the folder."""
        self.checksums: dict[str, str] = {}
        """File -> SHA-256."""
        self.pending: dict[JobId, tuple[str, str]] = {}
        """Job -> file and checksum of states that are not accepted yet."""
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
        """Stores the private state after a fit, apart from the accepted states.

        Args:
            job: The job that was trained.
            state: Private state of its client.
            rounds: Number of finished rounds, including this one.
            attempt: Number of earlier attempts at the round; part of the file's name, since another process may still
                remove the files of the last attempt.
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
        """Returns the files that were replaced since the last call."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def load(self, files: Mapping[JobId, str], checksums: Mapping[str, str]) -> None:
        """Takes over the states that a checkpoint names.

        Args:
            files: Job -> file of its state.
            checksums: File -> SHA-256 of these files, and perhaps of others.
        """
        self.files = dict(files)
        self.checksums = {file: checksums[file] for file in self.files.values()}

    def move_to(self, folder: Path) -> None:
        """Writes all states in memory to a folder, and uses the folder from then on."""
        kept, self._kept, self.folder = self._kept, {}, folder
        for job, state in kept.items():
            self.put(job, state, 0)
        self.accept(kept)
