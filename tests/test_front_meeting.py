# SPDX-License-Identifier: MIT
"""The front side of a session's beginning and end: meeting and refusals, waiting for it, death of the back, closing."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcisplit import wire
from pcisplit._core import ffi
from pcisplit.front import Session, connect
from pcisplit.proto.errors import AccessError, BusyError, MeetingRefused, SessionGone
from pcisplit.proto.meeting import Need, Reply, parse_hello_untrusted
from pcisplit.ring.region import LATE_F2B_SEALS
from pcisplit.wire import Error
from tests.conftest import Backend


@pytest.mark.clause("LIFE-4")
def test_a_backend_that_is_killed(backend: Backend) -> None:
    with backend.connect() as session:
        ram = session.acquire("ram0")
        backend.process.kill()
        backend.process.wait()
        backend.killed = True
        with pytest.raises(SessionGone):
            ram.nop()
        with pytest.raises(SessionGone):
            ram.nop()


@pytest.mark.clause("LIFE-4")
def test_a_backend_that_is_terminated_says_goodbye(backend: Backend) -> None:
    with backend.connect() as session:
        backend.process.send_signal(signal.SIGTERM)
        assert backend.process.wait(20) == 0
        with pytest.raises(SessionGone, match="connect again"):
            session.acquire("ram0").nop()


@pytest.mark.clause("MEET-7", "MEET-8", "MEET-9", "MEET-15", "MEET-16", "MEET-17")
def test_refusals_say_what_to_change(backend: Backend) -> None:
    cases: list[tuple[dict[str, Any], Error, str]] = [
        ({"devices": ["nic9"]}, Error.UNKNOWN_DEVICE, "no device 'nic9' is served; this back has: edu0, ram0"),
        ({"devices": ["edu0"], "driver": "ixy", "dma": 32 << 20}, Error.DMA_TOO_LARGE,
         "driver 'ixy' needs 32 MiB of DMA memory for 1 device; serve was given 4 MiB: use --dma 32M"),
        ({"devices": ["edu0"], "dma": 4 << 20, "dma_bits": 22}, Error.DMA_UNREACHABLE, "below 2^22"),
        ({"devices": [Need("edu0", 5)]}, Error.TOO_MANY_VECTORS, "edu0 has 1 vectors, the front asks for 5"),
    ]  # fmt: skip
    for options, code, text in cases:
        with pytest.raises(MeetingRefused) as refused:
            backend.connect(**options)
        assert refused.value.code is code
        assert text in refused.value.sentence
    with backend.connect(devices=["edu0"]), pytest.raises(MeetingRefused) as refused:
        backend.connect(devices=["ram0", "edu0"])
    assert refused.value.code is Error.DEVICE_TAKEN
    assert "session" in refused.value.sentence
    with backend.connect(devices=["ram0", "edu0"]) as session:
        assert session.devices == ("ram0", "edu0")


@pytest.mark.clause("LIFE-7", "LIFE-13")
def test_devices_are_free_when_the_socket_closes(backend: Backend) -> None:
    for _ in range(20):
        with backend.connect() as session:
            watched = session._sock.dup()
        watched.setblocking(True)
        assert watched.recv(1) == b""
        watched.close()


@pytest.mark.clause("IRQ-10")
def test_direct_vectors_are_for_tenders(make_backend: Callable[..., Backend]) -> None:
    from pcisplit.wire import VectorMode

    need = Need("edu0", 1, VectorMode.DIRECT)
    plain = make_backend("--device", "edu0=model:edu")
    with pytest.raises(MeetingRefused, match="trusted tenders") as refused:
        plain.connect(devices=[need])
    assert refused.value.code is Error.ACCESS_DENIED
    trusting = make_backend("--device", f"edu0=model:edu,tender={os.getuid()}")
    with trusting.connect(devices=[need]) as session:
        edu = session.acquire("edu0")
        edu.config.write16(4, 6)
        edu.irq(0).enable()
        edu.bar(0).write32(0x60, 1)
        assert edu.irq(0).wait(10.0) == 1
        assert "direct" in repr(edu.irq(0))


@pytest.mark.clause("THR-3")
def test_a_backend_without_descriptors_goes_on(make_backend: Callable[..., Backend]) -> None:
    """Connections that use up the backend's descriptors do not end it, and sessions come back when they are gone."""
    backend = make_backend("--device", "ram0=model:ram", files=40)
    deadline = time.monotonic() + 20
    with contextlib.ExitStack() as held:
        while not any(line["event"] == "cannot accept" for line in backend.log):
            with contextlib.suppress(BlockingIOError):  # the backlog is full for now
                held.enter_context(backend.raw())
            assert time.monotonic() < deadline
    while True:
        with contextlib.suppress(MeetingRefused, OSError), backend.connect() as session:
            session.acquire("ram0").nop()
            return
        assert time.monotonic() < deadline


def test_closing_a_session_that_another_thread_is_in(backend: Backend) -> None:
    """The thread inside is woken by the end of the session; nothing is freed under it."""
    session = backend.connect()
    ended: list[BaseException] = []
    irq = session.acquire("edu0").irq(0)

    def wait() -> None:
        while not ended:
            try:
                irq.wait(timeout=20)
            except BusyError:
                continue
            except (SessionGone, AccessError) as problem:
                ended.append(problem)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # until it is inside
        try:
            session.acquire("ram0").nop()
        except BusyError:
            break
    session.close()
    thread.join(20)
    assert ended
    for call in (irq.poll, irq.enable, session.acquire("ram0").nop, lambda: session.acquire("ram0").bar(0).read32(0)):
        with contextlib.suppress(SessionGone):
            assert call() == 0  # a closed session does nothing, and nothing crashes


# -- closing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hold, text",
    [
        (lambda memory: memory[10:20], "DMA memory is still in use by slices"),
        (ctypes.c_char.from_buffer, "DMA memory is still in use by slices"),
        (ffi.from_buffer, "1 buffer of DMA memory is still in use"),
    ],
    ids=["slice", "ctypes", "array"],
)
def test_closing_with_dma_memory_in_use(backend: Backend, hold: Callable[[memoryview], object], text: str) -> None:
    """Everything but the memory goes, the error says what is held, and closing again finishes it."""
    session = backend.connect()
    open_before = set(os.listdir("/proc/self/fd"))
    held = [hold(session.dma.alloc(4096).memory)]
    session.dma.alloc(64)
    with pytest.raises(BusyError, match=text):
        session.close()
    backend.wait_log("session over")
    assert len(set(os.listdir("/proc/self/fd"))) <= len(open_before) - 6  # f2b, b2f, dma, two doorbells, the socket
    assert session._fds == []
    assert sum(memory is not None for memory in session._maps) == 1
    with pytest.raises(BusyError, match="close again"):
        session.close()
    held.clear()
    session.close()
    assert session._maps == []
    session.close()
    with pytest.raises(SessionGone):
        session.acquire("ram0").nop()
    with pytest.raises(SessionGone):
        assert session.acquire("ram0").refused


def test_closing_in_a_with_block_that_failed_says_both(backend: Backend) -> None:
    with pytest.raises(ZeroDivisionError) as failed, backend.connect() as session:
        held = session.dma.alloc(64).memory[1:]
        1 / 0  # noqa: B018
    assert "still in use" in failed.value.__notes__[0]
    assert len(held) == 63
    del held
    session.close()


def test_freeing_a_buffer_that_is_in_use(session: Session) -> None:
    buffer = session.dma.alloc(64)
    array = ffi.from_buffer(buffer.memory)
    with pytest.raises(BusyError, match="let go"):
        session.dma.free(buffer)
    del array
    session.dma.free(buffer)
    assert session.dma.free_size == session.dma.size


# -- connect(wait=...) --------------------------------------------------------------------------------------------------


class Connecting:
    """``connect`` in a thread; ``result`` waits for the session or the exception."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._results: queue.SimpleQueue[Session | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(path, options), daemon=True).start()

    def _run(self, path: Path, options: dict[str, Any]) -> None:
        try:
            self._results.put(connect(path, **options))
        except Exception as problem:
            self._results.put(problem)

    def result(self) -> Session | Exception:
        return self._results.get(timeout=20)


def test_waiting_for_a_socket_that_is_not_there_yet(tmp_path: Path, make_backend: Callable[..., Backend]) -> None:
    coming = Connecting(tmp_path / "run0" / "socket", wait=20)
    make_backend("--device", "ram0=model:ram")
    session = coming.result()
    assert isinstance(session, Session)
    session.close()


def test_nothing_to_wait_for_is_told_at_once_or_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(FileNotFoundError) as missing:
        connect(path)
    assert "waiting" not in str(missing.value)
    with pytest.raises(FileNotFoundError, match=r"after waiting 0\.[1-9] s.*socket"):
        connect(path, wait=0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as nobody:
        nobody.bind(str(path))
        with pytest.raises(ConnectionRefusedError, match="after waiting"):
            connect(path, wait=0.1)
        coming = Connecting(path, wait=20)
        nobody.listen(1)
        accepted, _ = nobody.accept()
        accepted.recv(wire.HELLO_MAX)
        accepted.send(Reply(Error.QUARANTINED, "not now").to_bytes())
        refused = coming.result()
    accepted.close()
    assert isinstance(refused, MeetingRefused)
    assert refused.code is Error.QUARANTINED


def test_waiting_for_a_device_that_is_taken(backend: Backend) -> None:
    session = backend.connect(devices=["ram0"])
    with pytest.raises(MeetingRefused, match=r"after waiting 0\.[1-9] s"):
        backend.connect(devices=["ram0"], wait=0.1)
    seen = sum(line["event"] == "refused" for line in backend.log)
    coming = Connecting(backend.path, devices=["ram0"], wait=20)
    backend.wait_log("refused", seen + 1)
    session.close()
    got = coming.result()
    assert isinstance(got, Session)
    got.close()


def test_a_refusal_that_no_retry_helps_is_raised_at_once(backend: Backend) -> None:
    before = time.monotonic()
    with pytest.raises(MeetingRefused) as refused:
        backend.connect(devices=["nic9"], wait=20)
    assert time.monotonic() - before < 10
    assert "waiting" not in str(refused.value)
    backend.wait_log("refused")  # the line may come after the answer
    assert [line["event"] for line in backend.log].count("refused") == 1


@pytest.mark.clause("MEET-22")
def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """Room is given in the order of asking; without any the front gives up at its deadline, and says so."""
    path = tmp_path / "socket"
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(str(path))
        listener.listen(0)
        ahead = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                sock.setblocking(False)
                sock.connect(str(path))
                ahead += 1
        with pytest.raises(BlockingIOError, match=r"backlog is full \(after waiting 0\.[1-9] s\)"):
            connect(path, timeout=0.1)
        coming = Connecting(path, timeout=20)
        for _ in range(ahead):
            held.enter_context(listener.accept()[0])
        accepted = held.enter_context(listener.accept()[0])
        assert parse_hello_untrusted(accepted.recv(wire.HELLO_MAX)).driver == "pcisplit"
        accepted.send(Reply(Error.UNKNOWN_DEVICE, "seen").to_bytes())
        refused = coming.result()
        assert isinstance(refused, MeetingRefused)
        assert refused.sentence == "seen"


@pytest.mark.clause("REG-7", "REG-3")
def test_the_front_has_mapped_its_regions_before_their_last_seals(session: Session) -> None:
    """It goes on writing f2b although the kernel gives nobody a further mapping for it."""
    f2b = session._fds[0]
    assert fcntl.fcntl(f2b, fcntl.F_GET_SEALS) & LATE_F2B_SEALS == LATE_F2B_SEALS
    with pytest.raises(PermissionError):
        mmap.mmap(f2b, mmap.PAGESIZE)
    session.acquire("ram0").bar(0).write32(0, 7)
    assert session.acquire("ram0").bar(0).read32(0) == 7
