# SPDX-License-Identifier: MIT
"""A backend for checks: ``pcisplit serve`` in a process of its own, its log, what it holds, and its end.

Importing what the backend needs takes seconds under emulation, so a group starts it once, in ``setup()``; the checks are
forked later, and none of them is its parent. Also used outside of the lab, with models.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pcisplit.front
from pcisplit.demo.edu_driver import BUFFER, DMA_BITS, Edu
from pcisplit.front import Session

from .check import wait_until

SECONDS = 60.0  # for what takes a second or two; the guest is emulated
PATIENCE = 10.0  # of the edu driver, for the same reason

_WARM_UP = 2  # sessions before the first count: threads that the event loop keeps, modules, malloc's arenas
_ALLOCATOR = 16  # mappings that malloc may add and take back
_SETTLED = 15.0  # seconds; the event loop ends a thread that it has not used for 10
_ATTEMPTS, _TOO_LATE = 10, 3  # to kill a front in time; the exit code of one that was not
_SERVE = (sys.executable, "-m", "pcisplit")
_NAMED = ("/memfd:", "anon_inode:", "/dev/")


class Serving:
    """A running backend. `devices` are ``NAME=SPEC``; it is ready when ``ready`` has returned."""

    def __init__(
        self,
        devices: Iterable[str],
        *options: str,
        gid: int | None = None,
        folder: Path | None = None,
        command: Sequence[str] = _SERVE,
        log: str = "log",
    ) -> None:
        """Start it. The socket's directory belongs to group `gid`, if that is given; it lies in `folder`, or in /run.

        `log` names the file of its log there.
        """
        self.folder = folder or Path(tempfile.mkdtemp(prefix="pcisplit-", dir="/run"))
        self.path, self.log_path = self.folder / "meeting" / "socket", self.folder / log
        self.path.parent.mkdir(exist_ok=True)  # one that was killed leaves it
        if gid is not None:
            self.folder.chmod(0o711)
            os.chown(self.path.parent, -1, gid)
        self.path.parent.chmod(0o750 if gid is None else 0o2750)  # the socket inherits the directory's group
        served = [word for device in devices for word in ("--device", device)]
        self._command = [*command, "serve", "--json", *served, "--socket", str(self.path)]
        self._command += ["--log-lines", "10000", *options]
        self._exit_code, self._report = os.pipe()
        self._started = threading.Event()
        # The runner kills, after each check, the children of its main thread. This one is the child of another, which
        # has to live as long as it does, since children of a thread that ends pass to the main one.
        threading.Thread(target=self._keep, daemon=True).start()
        self._started.wait()

    def _keep(self) -> None:
        with self.log_path.open("wb") as log:
            process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = process.pid
        self._started.set()
        os.write(self._report, process.wait().to_bytes(4, "little", signed=True))

    def ready(self) -> Serving:
        """Wait until it serves."""
        wait_until(lambda: self.find("serving") or self.ended(0), SECONDS, "the backend to serve")
        assert not self.ended(0), f"the backend ended: {self.log_path.read_text()}"
        return self

    # -- its log ----------------------------------------------------------------------------------------------

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def find(self, event: str, since: int = 0) -> list[dict[str, Any]]:
        return [line for line in self.log[since:] if line["event"] == event]

    def wait_log(self, event: str, since: int = 0) -> dict[str, Any]:
        """The first line with this event, from the `since`-th line on."""
        return wait_until(lambda: self.find(event, since), SECONDS, f"the log line {event!r}")[0]

    # -- fronts -----------------------------------------------------------------------------------------------

    def connect(self, *devices: str, **options: Any) -> Session:
        """A front in this process, for devices that are all edu unless `options` say more."""
        wanted: dict[str, Any] = {"dma": 1 << 20, "dma_bits": DMA_BITS, "timeout": SECONDS, "driver": "lab"}
        return pcisplit.front.connect(self.path, devices=devices, **{**wanted, **options})

    # -- its end ----------------------------------------------------------------------------------------------

    def ended(self, timeout: float) -> bool:
        return bool(select.select([self._exit_code], [], [], timeout)[0])

    def stop(self) -> None:
        """Ask it to stop (SIGTERM); it must end with 0, have logged nothing that is a bug, and take its socket away."""
        if not self.ended(0):
            os.kill(self.pid, signal.SIGTERM)
        assert self.ended(SECONDS), f"the backend does not stop: {self.log_path.read_text()}"
        code = int.from_bytes(os.read(self._exit_code, 4), "little", signed=True)
        said = self.log_path.read_text()
        assert code == 0, f"the backend ended with {code}: {said}"
        assert "Traceback" not in said and "owner failed" not in said and "session failed" not in said, said
        assert not self.path.exists()


@dataclass(frozen=True)
class Usage:
    """What a backend holds, all its processes together.

    Descriptors and named mappings, by what they are; how many processes, threads and unnamed mappings.
    """

    files: Counter[str]
    mappings: Counter[str]
    threads: int
    unnamed: int
    processes: int = 1

    @staticmethod
    def of(pid: int) -> Usage:
        """Of a process and of all that descend from it. One that ends meanwhile counts as far as it was seen."""
        pids = tree(pid)
        files: Counter[str] = Counter()
        named: Counter[str] = Counter()
        threads = unnamed = 0
        for one in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                threads += len(os.listdir(f"/proc/{one}/task"))
                files += files_of(one)
                names = mappings_of(one)
                named += (kept := Counter(name for name in names if name.startswith(_NAMED)))
                unnamed += len(names) - kept.total()
        return Usage(files, named, threads, unnamed, len(pids))

    def more_than(self, before: Usage) -> str:
        """What this holds and `before` did not; empty if nothing. Unnamed mappings are memory, which ``malloc`` keeps."""
        more = [f"{n} x {what}" for what, n in (self.files - before.files).items()]
        more += [f"{n} x mapping of {what}" for what, n in (self.mappings - before.mappings).items()]
        if self.threads > before.threads:
            more.append(f"{self.threads - before.threads} threads")
        if self.processes > before.processes:
            more.append(f"{self.processes - before.processes} processes")
        return ", ".join(more)


def tree(pid: int) -> list[int]:
    """A process and all that descend from it, the oldest first; empty when it is gone."""
    found, left = [], [pid]
    while left:
        one = left.pop(0)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(one)
            for task in os.listdir(f"/proc/{one}/task"):
                left += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found if Path(f"/proc/{pid}").exists() else []


def alive(pid: int) -> bool:
    """Whether a process is more than an entry that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def files_of(pid: int) -> Counter[str]:
    """The descriptors of a process, by what they are. PermissionError: it is undumpable, and we are not root."""
    files: Counter[str] = Counter()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
            files[target.partition(":[")[0] if target.startswith(("socket:", "pipe:")) else target] += 1
    return files


def mappings_of(pid: int) -> list[str]:
    """The names of a process's mappings, empty for those without."""
    maps = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [fields[5] if len(fields) > 5 else "" for fields in maps]


def kill_many(backend: Serving, name: str, times: int) -> None:
    """So many fronts are killed in the middle of a transfer of their edu device, one after another.

    AssertionError if the backend keeps anything of one of them, or if the device does not serve the next one.
    """
    before = None
    for number in range(_WARM_UP + times):
        assert any(_kill_in_dma(backend, name) for _ in range(_ATTEMPTS)), (
            "no front was killed before its transfer ended"
        )
        if before is not None:
            _wait_for_no_more(backend.pid, before)
        elif number == _WARM_UP - 1:
            before = Usage.of(backend.pid)
            print(before)
    assert before is not None
    after = Usage.of(backend.pid)
    assert after.unnamed < before.unnamed + _ALLOCATOR, f"{after.unnamed - before.unnamed} more unnamed mappings"
    check_edu(backend, name)


def check_edu(backend: Serving, name: str) -> None:
    """An edu device does for a session of ours all that it can do. AssertionError."""
    with backend.connect(name, wait=SECONDS) as session:
        edu, buffer = Edu(session, session.acquire(name), PATIENCE), session.dma.alloc(4096)
        buffer.memory[:1024] = data = os.urandom(1024)
        edu.enable_interrupts()
        edu.dma_to_device(buffer.iova, 1024)
        edu.dma_from_device(buffer.iova + 2048, 1024)
        assert bytes(buffer.memory[2048:3072]) == data
        assert edu.factorial_by_interrupt(10) == 3628800


def _wait_for_no_more(pid: int, before: Usage) -> None:
    try:
        wait_until(lambda: not Usage.of(pid).more_than(before), _SETTLED)
    except AssertionError:
        raise AssertionError(f"the backend still holds {Usage.of(pid).more_than(before)}") from None


def _kill_in_dma(backend: Serving, name: str) -> bool:
    """A front in a process of its own is killed, with SIGKILL, while its edu device is in the middle of a transfer.

    Returns, when the backend has torn its session down, whether the transfer had not ended before: machines can be slow.
    """
    since = len(backend.log)
    running, report = os.pipe()
    if (front := os.fork()) == 0:
        _die(backend, name, report)
    os.close(report)
    ready, _, _ = select.select([running], [], [], SECONDS)
    os.kill(front, signal.SIGKILL)
    _, status = os.waitpid(front, 0)
    os.close(running)
    assert ready, "the front did not start its transfer in time"
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == _TOO_LATE, "the front failed, see above"
    over = backend.wait_log("session over", since)
    assert over["problems"] == 0, over
    return os.WIFSIGNALED(status)


def _die(backend: Serving, name: str, report: int) -> NoReturn:
    """The life of that front: a transfer, and reads until it is killed."""
    code = 1
    try:
        session = backend.connect(name)
        edu = Edu(session, session.acquire(name), PATIENCE)
        assert edu.identity() & 0xFF == 0xED and edu.alive(os.getpid())
        buffer = session.dma.alloc(4096)
        assert not any(buffer.memory), "the DMA memory of a new session is not zero"
        buffer.memory[:] = b"\xa5" * buffer.size
        edu.start_dma(buffer.iova, BUFFER, 2048, 0)
        os.write(report, b"!")
        while edu.dma_running():
            pass
        code = _TOO_LATE
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
