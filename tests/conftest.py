# SPDX-License-Identifier: MIT
"""Fixtures: a backend process with models, a session with it; the skip of tests whose system package is missing; the end of a
run that hangs in C."""

import faulthandler
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pcisplit.front
from pcisplit.front import Session
from tests.control_backend import Running, control_backend

DEADLINE = 20.0

#: Seconds after a test's limit at which the run ends with the stacks of all threads, the test's function among them.
GRACE = 60.0
_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # before capturing


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_STDERR])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from _ended_in_time(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from _ended_in_time(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield from _ended_in_time(item)


def _ended_in_time(item: pytest.Item) -> Iterator[None]:
    """pytest-timeout's signal waits for Python: it ends no call that stays in C, and no teardown after a test that it has failed.

    This is a thread without the interpreter's lock, which needs neither.
    """
    marker = item.get_closest_marker("timeout")
    chosen = item.config.getoption("timeout") or os.environ.get("PYTEST_TIMEOUT") or item.config.getini("timeout")
    limit = float(marker.args[0] if marker is not None else chosen)
    if limit:
        faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=item.config.stash[_STDERR])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def children(pid: int) -> list[int]:
    """Pids of the living children of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead may wait to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or read
        return False


class Backend:
    """A ``pcisplit serve`` process. `log` reads its JSON lines; ``stop`` checks that it went well."""

    def __init__(self, folder: Path, *args: str, files: int | None = None) -> None:
        self.folder, self.path = folder, folder / "socket"
        self._log = folder / "log"
        self.killed = False  # by the test, on purpose
        command = [sys.executable, "-m", "pcisplit", "serve", "--json", "--socket", str(self.path)]
        command += ["--log-lines", "10000", *args]  # tests read the log of many quick sessions
        with self._log.open("w") as log:
            limit = ["prlimit", f"--nofile={files}"] if files else []
            self.process = subprocess.Popen([*limit, *command], stderr=log, stdout=log)
        deadline = time.monotonic() + DEADLINE
        while not self._listening():
            assert self.process.poll() is None, f"serve ended: {self._log.read_text()}"
            assert time.monotonic() < deadline, "serve does not listen"
            os.sched_yield()

    def _listening(self) -> bool:
        return any(line["event"] == "serving" for line in self.log) and self.path.exists()

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_log(self, event: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th line with this event; waits for it."""
        deadline = time.monotonic() + DEADLINE
        while True:
            found = [line for line in self.log if line["event"] == event]
            if len(found) >= count:
                return found[count - 1]
            assert time.monotonic() < deadline, f"no log line {event!r} in {self.log}"
            os.sched_yield()

    def workers(self, count: int | None = None) -> list[int]:
        """Pids of what the zygote has forked and that still lives; waits until there are `count`: sealers come and go."""
        (zygote,) = children(self.process.pid)
        deadline = time.monotonic() + DEADLINE
        while True:
            living = [pid for pid in children(zygote) if alive(pid)]
            if count is None or len(living) == count:
                return living
            assert time.monotonic() < deadline, f"{len(living)} processes of the zygote, not {count}"
            os.sched_yield()

    def connect(self, **options: Any) -> Session:
        return pcisplit.front.connect(self.path, **{"timeout": DEADLINE, **options})

    def raw(self, patience: float = DEADLINE) -> socket.socket:
        """A connected socket before its hello. TimeoutError when nobody accepts for `patience` seconds."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(patience)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        return sock

    def stop(self) -> None:
        if self.killed:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(DEADLINE) == 0, self._log.read_text()
        assert "Traceback" not in self._log.read_text(), self._log.read_text()
        assert not self.path.exists()


@pytest.fixture
def make_backend(tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    """Start backends with given ``serve`` arguments; they are stopped and checked at the end."""
    started: list[Backend] = []

    def make(*args: str, files: int | None = None) -> Backend:
        folder = tmp_path / f"run{len(started)}"
        folder.mkdir(mode=0o750)
        started.append(Backend(folder, *args, files=files))
        return started[-1]

    yield make
    for backend in started:
        backend.stop()


@pytest.fixture
def backend(make_backend: Callable[..., Backend]) -> Backend:
    """A backend with an edu device and a memory device."""
    return make_backend("--device", "edu0=model:edu", "--device", "ram0=model:ram", "--dma", "4M")


@pytest.fixture
def session(backend: Backend) -> Iterator[Session]:
    """A session with both devices of `backend`, decode and bus master on."""
    with backend.connect(dma_bits=28) as session:
        for name in session.devices:
            session.acquire(name).config.write16(0x04, 0x07)
        yield session


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A control server over a scripted source."""
    with control_backend(tmp_path) as running:
        yield running


@pytest.fixture
def tool() -> Callable[[str], str]:
    """The path of a system tool, or a skip that says which package brings it."""
    packages = {
        "clang": "clang",
        "spin": "spin",
        "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
        "riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu",
        "qemu-aarch64": "qemu-user",
        "qemu-riscv64": "qemu-user",
        "gcc": "gcc",
        "g++": "g++",
    }

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed: apt-get install {packages[name]}")
        return path

    return find
