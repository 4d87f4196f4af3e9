# SPDX-License-Identifier: MIT
"""The backend's processes: who shares memory with a front, what that one can do, who puts devices in order when it is dead."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pcisplit.back import log
from pcisplit.back.channel import MESSAGE_MAX, ChannelError, pack, unpack_untrusted
from pcisplit.back.devices.models.ram import RamModel
from pcisplit.back.keeper import main as keeper_main
from pcisplit.back.keeper.main import Keeper
from pcisplit.back.log import PeerLog
from pcisplit.back.supervisor.house import House
from pcisplit.back.supervisor.meeting import Meetings
from pcisplit.back.supervisor.registry import Entry, Registry
from pcisplit.back.supervisor.session import Session
from pcisplit.back.supervisor.uids import WorkerUids
from pcisplit.proto.errors import DeviceError, SessionGone
from pcisplit.proto.meeting import Hello, Need
from pcisplit.wire import Error
from tests.conftest import DEADLINE, Backend, children


def shared_regions(pid: int) -> set[str]:
    """Names of the memfds of sessions that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {line.split("memfd:")[1].split()[0] for line in lines if "memfd:pcisplit" in line}


def workers(backend: Backend) -> set[int]:
    """Pids of the processes that serve a front; a sealer, or one that is ending, is none."""
    return {pid for pid in backend.workers() if "pcisplit-f2b" in shared_regions(pid)}


@pytest.mark.clause("THR-15")
def test_only_the_worker_maps_what_a_front_shares(backend: Backend) -> None:
    (zygote,) = children(backend.process.pid)
    with backend.connect(devices=["ram0"]):
        (worker,) = workers(backend)
        assert {"pcisplit-f2b", "pcisplit-b2f"} <= shared_regions(worker)
        assert not shared_regions(backend.process.pid)
        assert not shared_regions(zygote)


@pytest.mark.clause("THR-13", "THR-3", "LIFE-13")
def test_a_worker_that_is_killed_costs_its_own_session(backend: Backend) -> None:
    with backend.connect(devices=["edu0"], dma_bits=28) as other:
        (others,) = workers(backend)
        session = backend.connect(devices=["ram0"])
        (worker,) = workers(backend) - {others}
        ram = session.acquire("ram0")
        ram.config.write16(0x04, 0x02)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(SessionGone):
            while True:
                ram.bar(0).read32(0)
        session.close()
        assert other.acquire("edu0").config.read16(0) == 0x1234
        assert "worker: died" in str(backend.wait_log("session over")["steps"])
        with backend.connect(devices=["ram0"], wait=DEADLINE) as again:
            assert again.acquire("ram0").config.read16(0) == 0x1AF4
        assert others in workers(backend)


@pytest.mark.clause("THR-14")
def test_every_thread_of_a_worker_is_in_the_filter(backend: Backend) -> None:
    with backend.connect(devices=["ram0"]):
        (worker,) = workers(backend)
        threads = [
            dict(line.split(":\t") for line in path.read_text().splitlines() if ":\t" in line)
            for path in Path(f"/proc/{worker}/task").glob("*/status")
        ]
        assert len(threads) >= 4, "main, serve, owner, control"
        assert {(thread["Seccomp"].strip(), thread["NoNewPrivs"].strip()) for thread in threads} == {("2", "1")}


#: A process that locks itself up as a worker does and then tries what an exploited one would: prints a name and errno each.
PRISONER = """
import ctypes, errno, fcntl, json, mmap, os, signal, socket, sys, threading
from pcisplit.back.worker import jail

here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
memory = os.memfd_create("x")
os.ftruncate(memory, 4096)
page = mmap.mmap(memory, 4096)
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()


def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


tries = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "open_by_handle_or_proc": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "make_a_file": lambda: os.mkdir("/tmp/pcisplit-prisoner"),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "thread": lambda: threading.Thread(target=print).start(),
    "socket": lambda: socket.socket(),
    "connect": lambda: here.connect("/run/x"),
    "pass_a_descriptor": lambda: socket.send_fds(here, [b"x"], [memory]),
    "memfd": lambda: os.memfd_create("y"),
    "dup": lambda: os.dup(memory),
    "executable_memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "kill": lambda: os.kill(parent, 0),
    "trace": lambda: call(101, 16, parent, 0, 0),
    "read_another_process": lambda: call(310, parent, 0, 0, 0, 0, 0),
    "take_a_descriptor": lambda: call(438, 0, 0, 0),
    "io_uring": lambda: call(425, 1, 0),
    "userfaultfd": lambda: call(323, 0),
    "widen_a_mapping": lambda: call(216, 0, 0, 0, 0, 0),
    "signal_another_by_fcntl": lambda: fcntl.fcntl(here, 10, 0),
    "map_for_dma": lambda: fcntl.ioctl(memory, 0x3B71),
    "other_device": lambda: fcntl.ioctl(memory, 0x3B6A),
    "seal": lambda: fcntl.fcntl(memory, 1033, 1),
    "truncate": lambda: os.ftruncate(memory, 0),
    "punch": lambda: call(285, memory, 3, 0, 4096),
    "become_root": lambda: os.setuid(0),
}
jail.drop_user(None)
jail.lock(jail.make_filter(), 64 << 20)
said = {}
for name, attempt in tries.items():
    try:
        attempt()
        said[name] = 0
    except OSError as problem:
        said[name] = problem.errno
    except RuntimeError:  # can't start new thread
        said[name] = errno.EPERM
os.write(1, json.dumps(said).encode())
os.pwrite(memory, b"still", 0)
assert page[:5] == b"still" and here.send(b"x") == 1  # what a session does goes on
os._exit(0)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the system calls are x86-64's")
@pytest.mark.clause("THR-14")
def test_what_a_worker_cannot_do() -> None:
    done = subprocess.run([sys.executable, "-c", PRISONER], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said: dict[str, int] = json.loads(done.stdout)
    assert len(said) == 26
    assert {name: code for name, code in said.items() if code != 1} == {}, "each fails with EPERM"


@pytest.mark.clause("THR-16")
@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_what_a_worker_says_is_a_message_or_the_end_of_its_channel(said: bytes | str) -> None:
    try:
        message = unpack_untrusted(said if isinstance(said, bytes) else said.encode())
    except ChannelError:
        return
    assert len({"do", "ok", "error", "tell"} & set(message)) == 1
    assert "tell" in message or type(message["id"]) is int


@pytest.mark.clause("THR-16")
@pytest.mark.parametrize(
    "message",
    [
        {"do": "open"},
        {"do": 1, "id": 1},
        {"do": "open", "id": True},
        {"do": "open", "id": -1},
        {"ok": [], "id": 1},
        {"ok": {}, "error": 1, "id": 1},
        {"error": -1, "id": 1},
        {"tell": None},
    ],
    ids=str,
)
def test_near_messages_are_none(message: dict[str, Any]) -> None:
    with pytest.raises(ChannelError):
        unpack_untrusted(json.dumps(message).encode())


def test_a_message_has_a_length() -> None:
    with pytest.raises(ValueError):
        pack({"tell": "x" * MESSAGE_MAX})


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.kill()


class Watched(RamModel):
    """Notes each thing that is done to it, and whether the worker was alive then."""

    def __init__(self, alive: Callable[[], bool]) -> None:
        super().__init__({})
        self.done: list[tuple[str, bool]] = []
        self._alive = alive

    def config_write(self, offset: int, width: int, value: int) -> None:
        self.done.append(("config_write", self._alive()))
        super().config_write(offset, width, value)

    def reset(self, method: Any = None) -> Any:
        self.done.append(("reset", self._alive()))
        return super().reset(method)


def keeper_of(worker: subprocess.Popen[bytes]) -> tuple[Keeper, Watched]:
    """A keeper without a group whose session has one function, at work."""
    device = Watched(lambda: worker.poll() is None)
    keeper = Keeper(None)  # type: ignore[arg-type]  # nobody asks it
    keeper._functions["0000:00:00.0"] = device.acquire()  # type: ignore[assignment]
    keeper._worker = os.pidfd_open(worker.pid)
    device.done.clear()
    return keeper, device


@pytest.mark.clause("THR-17", "LIFE-10")
def test_a_keeper_touches_the_device_when_the_worker_is_dead(worker: subprocess.Popen[bytes]) -> None:
    keeper, device = keeper_of(worker)
    done, unclean, unreset = keeper.finish()
    assert [step.name for step in done.steps] == [
        "worker dead",
        "master off",
        "transactions",
        "interrupts off",
        "reset",
    ]
    assert not done.problems and not unclean and not unreset
    assert device.done == [("config_write", False), ("reset", False)]
    device.close()


@pytest.mark.clause("THR-17", "LIFE-12")
def test_a_worker_that_does_not_die_costs_the_device(
    worker: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_main, "KILL_SECONDS", 0.01)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)  # as in uninterruptible sleep
    keeper, device = keeper_of(worker)
    done, unclean, unreset = keeper.finish()
    assert "does not die" in unclean and not unreset, "none of the group's devices is offered again"
    assert [step.name for step in done.problems] == ["worker dead"]
    assert ("reset", True) in device.done, "the order is done all the same"
    monkeypatch.undo()
    done, unclean, _ = keeper.finish()
    assert not unclean and device.done[-1] == ("reset", False), "and once more when it is dead"
    device.close()


@pytest.mark.clause("THR-18", "LIFE-12")
@pytest.mark.parametrize("where", ["open", "close"])
def test_no_failure_of_a_session_loses_a_device(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, the registry hears of the end; a device whose order nobody knows of is withheld, with the reason."""

    async def fail(*_: object) -> object:
        raise RuntimeError("no thread, no memory, a bug")

    async def refuse(*_: object) -> object:
        raise DeviceError(Error.DEVICE_FAILED, "no")

    entry = Entry("ram0", RamModel({}))
    registry = Registry([entry], 1 << 20, os.geteuid())
    monkeypatch.setattr(Session, "open", fail if where == "open" else refuse)
    monkeypatch.setattr(Session, "close", fail if where == "close" else Session.close)
    house = House(None, None, WorkerUids(), PeerLog(), 1 << 20, 0.0, False)  # type: ignore[arg-type]  # nothing is forked

    async def meet() -> None:
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        async with trio.open_nursery() as nursery:
            with theirs:
                await theirs.send(Hello("x", (Need("ram0", 0),), 0).to_bytes())
                await Meetings(registry, house, nursery).connection(ours)

    trio.run(meet)
    assert entry.session == 0
    assert entry.quarantined == ("its session was not torn down" if where == "close" else "")


@pytest.mark.clause("THR-7")
def test_lines_of_one_uid_hide_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, Any]] = []
    log.configure(sink=lambda level, event, fields: told.append((event, fields["uid"])))
    try:
        monkeypatch.setattr("time.monotonic", lambda: 7.0)
        peers = PeerLog()
        for number in range(1000):  # as many sessions of one uid
            peers(1000, "session", session=number)
        peers(1001, "refused")
        assert told == [("session", 1000)] * log.LINES_PER_SECOND + [("refused", 1001)]
    finally:
        log.configure()
