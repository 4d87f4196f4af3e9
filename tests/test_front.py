# SPDX-License-Identifier: MIT
"""The public frontend against a backend in another process: what a driver's author sees."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcisplit import pci, wire
from pcisplit._core import ffi
from pcisplit.back.devices.device import Interrupts
from pcisplit.errors import AccessError, AccessTimeout, BusyError, MeetingRefused, SessionGone
from pcisplit.front import Session, connect
from pcisplit.messages import Need, Reply, parse_hello_untrusted
from pcisplit.ring.region import LATE_F2B_SEALS
from pcisplit.rules import Rule, rule_name
from pcisplit.wire import Error
from tests.conftest import Backend
from tests.pair import Pair, Recorder


def test_the_session_of_the_readme(backend: Backend) -> None:
    with backend.connect() as session:
        nic = session.acquire("edu0")
        assert nic.config.read16(0) == 0x1234
        nic.config.write16(4, 0x6)
        nic.bar(0).write32(4, 0x12345678)
        assert nic.bar(0).read32(4) == 0xEDCBA987
        nic.irq(0).enable()
        nic.bar(0).write32(0x60, 1)
        assert nic.irq(0).wait(timeout=10.0) == 1
    backend.wait_log("session over")


def test_reprs_are_readable(session: Session) -> None:
    edu = session.acquire("edu0")
    assert repr(session).startswith("<session 1, open: edu0, ram0; <DMA pool: 0x400000 octets in 1 windows")
    assert repr(edu) == "<device edu0 1234:11e8: BAR 0; 1 vectors>"
    assert repr(edu.bar(0)) == "<BAR 0 of edu0: 0x100000 octets of memory>"
    assert repr(edu.irq(0)) == "<vector 0 of edu0, relayed>"
    assert repr(edu.config) == "<configuration space of edu0>"
    assert repr(session.dma.alloc(4096)) == "<DMA buffer: 0x1000 octets at IOVA 0x200000>"


def test_errors_say_what_where_and_what_to_do(session: Session) -> None:
    ram = session.acquire("ram0")
    cases: list[tuple[Callable[[], object], Error, str]] = [
        (lambda: ram.bar(0).read32(2), Error.UNALIGNED, "read of 4 octets at 0x2 in BAR 0 (0x100000 octets) of ram0"),
        (lambda: ram.bar(0).read(0, 3), Error.BAD_SIZE, "read of 3 octets"),
        (lambda: ram.bar(0).read32(1 << 20), Error.INVALID_OFFSET, "at 0x100000"),
        (lambda: ram.config.write32(0, 1), Error.DENIED, "by rule ids (1), octet 0x0"),
        (lambda: ram.bar(2).read32(0x800), Error.DENIED, "BAR 2"),
        (lambda: ram.bar(1), Error.INVALID_OFFSET, "which has [0, 2, 4]"),
        (lambda: ram.irq(3), Error.TOO_MANY_VECTORS, "which got 1 at the meeting"),
        (lambda: session.acquire("nic9"), Error.DEV_NOT_FOUND, "this session has edu0, ram0"),
        (lambda: session.dma.alloc(1 << 30), Error.DMA_TOO_LARGE, "serve --dma must allow"),
    ]
    for call, code, text in cases:
        with pytest.raises(AccessError) as refused:
            call()
        assert refused.value.code is code
        assert text in str(refused.value)


@pytest.mark.clause("BAR-1", "BAR-3")
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_widths(session: Session, width: int) -> None:
    memory = session.acquire("ram0").bar(0)
    memory.write_block(0, bytes(range(1, 33)))
    assert memory.read(16, width) == int.from_bytes(bytes(range(17, 17 + width)), "little")
    memory.write(16, width, (1 << (8 * width)) - 1)
    assert memory.read_block(0, 32) == bytes(range(1, 17)) + b"\xff" * width + bytes(range(17 + width, 33))


@pytest.mark.clause("BAR-20", "BAR-21", "BAR-22")
@pytest.mark.parametrize("width", [1, 4, 8])
def test_blocks_of_any_length(session: Session, width: int) -> None:
    memory, data = session.acquire("ram0").bar(0), os.urandom(100_000)
    memory.write_block(64, data, width)
    assert memory.read_block(64, len(data), width) == data


def test_many_reads_in_flight(session: Session) -> None:
    memory = session.acquire("ram0").bar(0)
    memory.write_block(0, b"".join(n.to_bytes(4, "little") for n in range(200)))
    assert memory.read_many(range(0, 800, 4)) == list(range(200))


def test_posted_errors_are_counted_before_the_next_answer(session: Session) -> None:
    ram = session.acquire("ram0")
    for _ in range(3):
        ram.bar(0).post(1, 4, 0)  # unaligned: nobody answers
    ram.nop()
    assert ram.posted_errors == 3
    assert ram.refused == 3


def test_the_trace_shows_what_crossed(session: Session) -> None:
    ram = session.acquire("ram0")
    with session.trace() as crossed:
        ram.bar(0).write32(0, 5)
        ram.bar(0).read32(0)
    lines = [str(message).split("#")[0] for message in crossed]
    assert lines == ["bar_write ", "bar_write ", "bar_read ", "bar_read "]


def test_waiting_for_an_interrupt_that_does_not_come(session: Session) -> None:
    with pytest.raises(AccessTimeout) as late:
        session.acquire("edu0").irq(0).wait(timeout=0.05)
    assert "waiting 0.05 s for vector 0 of edu0" in str(late.value)


def test_waiting_in_a_trio_task(session: Session) -> None:
    edu = session.acquire("edu0")
    edu.irq(0).enable()

    async def main() -> int:
        async with trio.open_nursery() as nursery:
            counts: list[int] = []

            async def wait() -> None:
                counts.append(await edu.irq(0).wait_async())

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            edu.bar(0).write32(0x60, 1)
            with trio.fail_after(10):
                while not counts:
                    await trio.lowlevel.checkpoint()
            return counts[0]

    import trio.testing

    assert trio.run(main) == 1


def test_two_threads_in_one_session(session: Session) -> None:
    edu = session.acquire("edu0")
    inside = threading.Event()

    def wait() -> None:
        while True:
            try:
                inside.set()
                edu.irq(0).wait(timeout=1.0)
            except BusyError:
                continue
            except AccessTimeout:
                return

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    deadline = time.monotonic() + 10
    with pytest.raises(BusyError, match="another thread"):
        while time.monotonic() < deadline:
            edu.config.read32(0)
    thread.join()
    edu.config.read32(0)


@pytest.mark.clause("ERR-4", "RING-9", "BAR-23", "ORD-15")
def test_an_answer_that_comes_too_late_is_dropped_and_counted(backend: Backend) -> None:
    """The worker is stopped (SIGSTOP) while a call waits: `timeout`, and nothing is mistaken for its answer later."""
    with backend.connect() as session:
        ram = session.acquire("ram0")
        ram.config.write16(4, 7)
        ram.bar(0).write32(0, 0x11111111)
        session.set_timeout(0.05)
        (worker,) = backend.workers(1)
        os.kill(worker, signal.SIGSTOP)
        while "T (stopped)" not in Path(f"/proc/{worker}/status").read_text():
            os.sched_yield()
        try:
            for _ in range(3):
                with pytest.raises(AccessTimeout):
                    ram.bar(0).read32(0)
            with pytest.raises(AccessTimeout):
                ram.bar(0).read_block(0, 4096)
            with pytest.raises(AccessTimeout):
                ram.bar(0).write_block(64, b"\x22" * 64)
        finally:
            os.kill(worker, signal.SIGCONT)
        session.set_timeout(20.0)
        assert ram.bar(0).read_block(64, 64) == b"\x22" * 64  # the write happened all the same, in order
        assert session.statistics == {"late": 5, "strange": 0, "stale": 0}


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


# -- what the errors say ------------------------------------------------------------------------------------------------


def test_an_empty_pool_says_what_it_has(session: Session) -> None:
    session.dma.alloc(session.dma.size - 4096)
    with pytest.raises(AccessError) as empty:
        session.dma.alloc(8192)
    assert not empty.value.retry
    assert "the pool of 0x400000 octets has 0x1000 free" in str(empty.value)
    assert "free a buffer, or ask for more at connect(dma=...)" in str(empty.value)
    assert "quota" not in str(empty.value)
    assert "trying again" not in str(empty.value)


@pytest.mark.clause("CFG-3")
def test_a_refusal_names_its_rule(session: Session) -> None:
    config = session.acquire("edu0").config
    for offset, name in ((0x08, "ids (1)"), (0x34, "cap-pointer (8)"), (0x40, "capability (10)"), (0xF0, "gap (12)")):
        with pytest.raises(AccessError, match=re.escape(f"denied by rule {name}, octet {offset:#x}: ")):
            config.write32(offset, 0xFFFFFFFF)
    assert rule_name(0x1001) == "4097 of the operator"
    assert rule_name(99) == "99"


def test_rules_are_called_as_the_specification_calls_them() -> None:
    table = (Path(__file__).parent.parent / "spec" / "config.md").read_text()
    named = {int(number): name for number, name in re.findall(r"^\| (\d+) `([a-z-]+)`", table, re.M)}
    assert named.items() <= {int(rule): rule.name.lower().replace("_", "-") for rule in Rule}.items()
    assert len(named) >= 12


class Capable(Recorder):
    """A device without vectors that can be enabled, with one capability."""

    interrupts = Interrupts()

    def __init__(self, capability: int) -> None:
        super().__init__()
        self.capability = capability

    def _initial_config(self) -> bytes:
        config = bytearray(super()._initial_config())
        config[pci.STATUS], config[pci.CAP_POINTER], config[0x40] = pci.STATUS_CAP_LIST, 0x40, self.capability
        return bytes(config)


@pytest.mark.parametrize(
    "capability, text",
    [(pci.CAP_MSIX, "has MSI-X only, which this version does not build"), (pci.CAP_PM, "it has no MSI")],
)
def test_a_device_without_msi_says_why(capability: int, text: str) -> None:
    with Pair(Capable(capability)) as pair, pytest.raises(AccessError, match=text) as none:
        pair.front.acquire("dev0").irq(0)
    assert none.value.code is Error.TOO_MANY_VECTORS


def test_a_session_that_asked_for_no_vectors_says_so(backend: Backend) -> None:
    with backend.connect(devices=[Need("edu0")]) as session, pytest.raises(AccessError, match="asked for none"):
        session.acquire("edu0").irq(0)


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
