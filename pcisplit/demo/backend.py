# SPDX-License-Identifier: MIT
"""The other process of the demo: ``pcisplit serve`` with model:edu, its log read line by line, ended and checked."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from pcisplit.proto.errors import PcisplitError

_SECONDS = 20.0  #: for whatever the backend is to do; it takes less than a second where it works


class Backend:
    """A backend process of our own, in a private directory. Call ``stop`` whatever happens."""

    def __init__(self, name: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pcisplit-demo-"))
        self.folder.chmod(0o750)
        self.path = self.folder / "socket"
        self.log: list[dict[str, Any]] = []
        self.words: list[str] = []  #: lines that are not JSON: none, unless something is broken
        self._news = threading.Condition()
        self._ended = False
        serve = [sys.executable, "-m", "pcisplit", "serve", "--json"]
        command = [*serve, "--device", f"{name}=model:edu", "--socket", str(self.path)]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                with self._news:
                    try:
                        self.log.append(json.loads(line))
                    except ValueError:
                        self.words.append(line.decode(errors="replace").rstrip())
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_log(self, event: str, since: int = 0) -> dict[str, Any]:
        """The first line of the log with this event, from line `since` on; waits for it. PcisplitError if none comes."""
        with self._news:
            self._news.wait_for(lambda: self._ended or self._find(event, since), _SECONDS)
            found = self._find(event, since)
        if found is None:
            said = "\n".join(self.words) or "nothing else"
            why = "it ended" if self._ended else f"{_SECONDS:g} s passed"
            raise PcisplitError(f"the backend did not log {event!r} before {why}; it said: {said}")
        return found

    def _find(self, event: str, since: int) -> dict[str, Any] | None:
        return next((line for line in self.log[since:] if line.get("event") == event), None)

    def stop(self) -> int:
        """Ask it to stop (SIGTERM), wait, tidy up. Returns its exit code: 0 if it went well. Idempotent."""
        try:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                return self.process.wait()
        finally:
            self._reader.join(_SECONDS)
            shutil.rmtree(self.folder, ignore_errors=True)


def describe_exit(code: int) -> str:
    """``ended with 0``, ``was killed by SIGKILL``."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class Stopwatch:
    """Microseconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter_ns()

    def __call__(self) -> float:
        return (time.perf_counter_ns() - self._start) / 1000
