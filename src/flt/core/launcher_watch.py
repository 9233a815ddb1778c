"""Watch over the launcher: the process that has started this one. If it dies, this process ends, too.

Without the watch, a process would wait for a dead launcher as long as for one that is busy.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from flt.core.errors import PeerDiedError

LAUNCHER = "FLT_LAUNCHER"
"""Environment variable that gives a launched process the id of its launcher."""
PERIOD = 0.5
"""Seconds between two looks at the launcher."""
DIED = f"the first process of the run has died; {PeerDiedError.advice}"


class LauncherWatch:
    """Thread that ends this process, with exit code 1, once its launcher has died.

    Attributes:
        launcher: Id of the process that launched this one; None if flt didn't launch this process.
    """

    def __init__(self) -> None:
        self.launcher: int | None = None
        self._speaker = 1
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, speaker: int = 1) -> None:
        """Starts the watch, unless flt didn't launch this process or the watch runs already.

        Args:
            speaker: The process with this local rank prints a line when the launcher has died. The others are silent.
        """
        self._speaker = speaker
        if launcher := os.environ.pop(LAUNCHER, None):  # removed, as it isn't meant for processes that this one starts
            self.launcher = int(launcher)
        if self.launcher is None or os.name != "posix" or (self._thread is not None and self._thread.is_alive()):
            return
        self._stopped.clear()
        self._thread = threading.Thread(target=self._watch, name="launcher-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops the watch, because the work of this process is done."""
        self._stopped.set()

    def wait(self) -> None:
        """Waits until the watch would have ended this process."""
        if self._thread is not None:
            self._thread.join(4 * PERIOD)

    def _watch(self) -> None:
        while os.getppid() == self.launcher:  # a process whose parent has died gets another parent
            if self._stopped.wait(PERIOD):
                return
        if os.environ.get("LOCAL_RANK") == str(self._speaker):
            with contextlib.suppress(OSError):
                print(f"error: {DIED}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may be waiting in code that nothing interrupts


WATCH = LauncherWatch()
"""The watch of this process."""


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """Makes this process the launcher of the processes that it starts in the with block."""
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(LAUNCHER, None)
