# SPDX-License-Identifier: MIT
"""A stream whose reader may stall or go away without anybody waiting or failing: for the log of a process that serves others."""

import contextlib
import os
import queue
import threading
import time
from typing import TextIO

LINES = 1000  #: that may wait for the reader; what comes after is left out, and counted


class PatientStream:
    """Writes to `stream` in a thread of its own, made at the first write (a process that forks first has none).

    What cannot be written is left out; once there is room again a line says how much that was.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(LINES)
        self._thread: threading.Thread | None = None
        self._left_out = 0

    def write(self, text: str) -> int:
        """Never waits, never raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()
        try:
            if self._left_out:
                self._lines.put_nowait(f"{self._left_out} writes to the log left out: its reader was too slow\n")
                self._left_out = 0
            self._lines.put_nowait(text)
        except queue.Full:
            self._left_out += 1
        return len(text)

    def flush(self) -> None:
        """The thread does that."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    def _run(self) -> None:
        while True:
            text = self._lines.get()
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                self._forget_reader()
            self._lines.task_done()

    def _forget_reader(self) -> None:
        """It has gone, and nobody is left to tell; what is still in a buffer must not fail when the process ends."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb", buffering=0) as null:
            os.dup2(null.fileno(), self._stream.fileno())

    def drain(self, seconds: float) -> None:
        """Give the reader so many seconds for what waits, at the end."""
        deadline = time.monotonic() + seconds
        with self._lines.all_tasks_done:
            while self._lines.unfinished_tasks and (left := deadline - time.monotonic()) > 0:
                self._lines.all_tasks_done.wait(left)
