# SPDX-License-Identifier: MIT
"""The backend that is measured: ``pcisplit serve`` and the processes it is made of, as /proc tells of them."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HERE = Path(__file__).resolve().parent
DEADLINE = 20.0  #: seconds for everything that is waited for


class BenchError(Exception):
    """The benchmark cannot go on; says why."""


@contextlib.contextmanager
def on_cpus(cpus: Collection[int] | None) -> Iterator[None]:
    """Run the block, and every process started in it, on these CPUs; None: on all that we may use."""
    before = os.sched_getaffinity(0)
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for(what: str, ready: Callable[[], bool]) -> None:
    """Look every millisecond. Raises BenchError after the deadline."""
    end = time.monotonic() + DEADLINE
    while not ready():
        if time.monotonic() > end:
            raise BenchError(f"waited {DEADLINE:.0f} s for {what}")
        time.sleep(0.001)


@dataclasses.dataclass(frozen=True, slots=True)
class Thread:
    """What the kernel says of a thread: `ticks` of CPU it has used, `sleeps` that it began by itself."""

    runs: bool
    ticks: int
    sleeps: int


class Backend:
    """``pcisplit serve`` with devices ram0, ram1, ..., on `cpus`. `spin` in microseconds; None is what serve does by itself.

    `uids`: who may have the devices, as many for each; `gid`: of the socket. Without: our own user alone.
    """

    def __init__(
        self,
        spin: float | None = None,
        cpus: Collection[int] | None = None,
        devices: int = 2,
        uids: Sequence[int] = (),
        gid: int | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pcisplit-bench-")
        folder = Path(self._folder.name)
        if gid is not None:
            os.chown(folder, -1, gid)
            folder.chmod(0o750)
        self.path, self._log = folder / "socket", folder / "log"
        command = [sys.executable, "-m", "pcisplit", "serve", "--socket", str(self.path), "--dma", "2M", "--json"]
        command += ["--spin", str(spin)] if spin is not None else []
        for index in range(devices):
            owner = f",uid={uids[index * len(uids) // devices]}" if uids else ""
            command += ["--device", f"ram{index}=model:ram{owner}"]
        with on_cpus(cpus), self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for("the backend to listen", self._listens)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _listens(self) -> bool:
        if self.process.poll() is not None:
            raise BenchError(f"the backend ended:\n{self._log.read_text()}")
        return '"serving"' in self._log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        text = self._log.read_text()
        self._folder.cleanup()
        if kind is None and (code or "Traceback" in text):
            raise BenchError(f"the backend ended with {code}:\n{text}")

    # -- its processes ----------------------------------------------------------------------------------------

    @property
    def supervisor(self) -> int:
        return self.process.pid

    @property
    def zygote(self) -> int:
        """Forked first of all, and the supervisor's only child. IndexError before that."""
        return children(self.supervisor)[0]

    def workers(self) -> list[int]:
        """One for each session."""
        return children(self.zygote)

    def processes(self) -> list[int]:
        """All of them; in 0.1, which threads served, there is one."""
        found = [self.supervisor]
        for pid in found:
            found += children(pid)
        return found

    def threads(self) -> dict[int, Thread]:
        """The threads of all its processes by number, now."""
        found = {}
        for pid in self.processes():
            for task in tasks(pid):
                with contextlib.suppress(OSError):  # it ended meanwhile
                    fields = task.joinpath("stat").read_text().rpartition(")")[2].split()
                    status = task.joinpath("status").read_text()
                    sleeps = int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
                    found[int(task.name)] = Thread(fields[0] == "R", int(fields[11]) + int(fields[12]), sleeps)
        return found

    def wait_asleep(self) -> None:
        """Until none of its threads runs: only then is its CPU free for a floor."""
        wait_for("the backend to sleep", lambda: not any(thread.runs for thread in self.threads().values()))

    def wait_sessions(self, count: int) -> None:
        """Until it has so many workers: those of sessions that are over take a moment to end."""
        wait_for(f"{count} workers to be left", lambda: len(self.workers()) == count)


def tasks(pid: int) -> list[Path]:
    """The threads of a process; none if it has ended."""
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


def children(pid: int) -> list[int]:
    """Of all threads of a process, oldest first."""
    found: list[int] = []
    for task in tasks(pid):
        with contextlib.suppress(OSError):
            found += map(int, task.joinpath("children").read_text().split())
    return sorted(found)


def pss(pid: int) -> float:
    """Proportional set size in MiB: its private memory, and of shared memory its part. PermissionError, mostly without root."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0]) / 1024
