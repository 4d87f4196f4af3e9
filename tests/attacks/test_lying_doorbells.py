# SPDX-License-Identifier: MIT
"""A back that makes the doorbells other things than doorbells, or changes flags of what both sides hold."""

import contextlib
import dataclasses
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pcisplit import wire
from pcisplit.front import Session
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.errors import AccessTimeout, PcisplitError, RemoteProtocolError, SessionGone
from pcisplit.proto.slots import Response
from pcisplit.wire import Op, VectorMode
from tests.liar import DMA, KICK, RUNG, Liar
from tests.offsets import offset_of

LIMIT = 10.0  #: seconds; what is tried has a deadline of 0.05 s


@pytest.fixture
def liar() -> Iterator[Liar]:
    with Liar() as liar:
        yield liar


def within_the_limit(call: Callable[[], Any]) -> BaseException | None:
    """What `call` raised, in a thread that may hang."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            raised.append(None)
        except Exception as problem:
            raised.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "the front hangs"
    return raised[0]


def make_blocking(fd: int) -> None:
    """What the back can do to any open file that it shares with the front."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)


def file_without_end() -> int:
    return os.open("/dev/zero", os.O_RDWR)


def pipe_end() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


def datagram_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def network_socket() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


@pytest.mark.clause("THR-33")
@pytest.mark.parametrize("make", [file_without_end, pipe_end, datagram_socket, network_socket, lambda: os.eventfd(0)])
def test_a_doorbell_that_is_no_stream_socket_is_refused(liar: Liar, make: Callable[[], int]) -> None:
    liar.swap(RUNG, make())
    with pytest.raises(RemoteProtocolError, match="not a UNIX stream socket"):
        liar.connect()


@pytest.mark.clause("THR-33")
def test_a_doorbell_to_the_back_that_is_no_eventfd_is_refused(liar: Liar, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for name in ("fifo", "file", "/dev/zero", "/dev/null"):
        liar.swap(KICK, os.open(tmp_path / name, os.O_RDWR))
        with pytest.raises(RemoteProtocolError, match="not an eventfd"):
            liar.connect()


def direct_vector(liar: Liar, fd: int) -> None:
    """Make the device's vector a direct one, on a descriptor of its own at the end."""
    info = parse_boot_info_untrusted(liar.boot_info)
    (device,) = info.devices
    vector = dataclasses.replace(device.vectors[0], mode=VectorMode.DIRECT, fd=len(liar.fds))
    liar.boot_info = dataclasses.replace(info, devices=(dataclasses.replace(device, vectors=(vector,)),)).to_bytes()
    liar.fds.append(fd)


@pytest.mark.clause("THR-33")
def test_a_direct_vector_that_is_no_eventfd_is_refused(liar: Liar) -> None:
    direct_vector(liar, file_without_end())
    with pytest.raises(RemoteProtocolError, match="vector 0 of dev0 is not an eventfd"):
        liar.connect()


@pytest.mark.clause("THR-33")
def test_a_direct_vector_that_blocks(liar: Liar) -> None:
    eventfd = os.eventfd(0)
    direct_vector(liar, eventfd)
    with liar.connect() as session:
        irq = session.acquire("dev0").irq(0)
        assert within_the_limit(lambda: irq.poll()) is None
        os.eventfd_write(eventfd, 5)
        assert irq.wait(LIMIT) == 5
        assert isinstance(within_the_limit(lambda: irq.wait(0.05)), AccessTimeout)


@pytest.mark.clause("THR-33", "LIFE-30")
@pytest.mark.parametrize("octets", [64, 1024, 4096])
def test_a_doorbell_that_blocks_with_a_whole_buffer_in_it(liar: Liar, octets: int) -> None:
    with liar.connect() as session:
        make_blocking(liar.fds[RUNG])
        os.write(liar.ring, bytes(octets))
        assert isinstance(within_the_limit(session.acquire("dev0").nop), AccessTimeout)


@pytest.mark.clause("THR-33", "LIFE-30")
def test_an_eventfd_that_is_full_and_blocks(liar: Liar) -> None:
    session = liar.connect()
    os.eventfd_read(liar.fds[KICK])
    os.eventfd_write(liar.fds[KICK], 0xFFFFFFFFFFFFFFFE)
    make_blocking(liar.fds[KICK])
    liar.words.store(offset_of("sleeping", wire.BACK_HEADER), 1)
    assert isinstance(within_the_limit(session.acquire("dev0").nop), AccessTimeout)
    assert within_the_limit(session.close) is None


@contextlib.contextmanager
def meanwhile(step: Callable[[], None]) -> Iterator[None]:
    """The back does `step` without end, in a thread."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            step()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def calls(session: Session) -> list[Callable[[], Any]]:
    device = session.acquire("dev0")
    return [
        device.nop,
        lambda: device.irq(0).wait(0.05),
        lambda: device.bar(0).read_many([0, 4, 8]),
        lambda: device.bar(0).read_block(0, 64),
    ]


@pytest.mark.clause("LIFE-30", "LIFE-4")
@pytest.mark.parametrize("call", range(4))
def test_a_back_that_rings_without_end(liar: Liar, call: int) -> None:
    def ring() -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(liar.ring, b"!" * 200)

    with liar.connect() as session, meanwhile(ring):
        before = time.monotonic()
        assert isinstance(within_the_limit(calls(session)[call]), AccessTimeout)
        assert time.monotonic() - before < 2.0


@pytest.mark.clause("LIFE-30", "LIFE-4")
@pytest.mark.parametrize("call", range(4))
def test_a_back_that_answers_what_nobody_asked_without_end(liar: Liar, call: int) -> None:
    number = 0

    def answer() -> None:
        nonlocal number
        taken = int.from_bytes(liar.f2b[offset_of("rsp_cons") :][:4], "little")
        if number - taken > 128:  # a ring that is full of them would be another lie, found at once
            return
        liar.answer(number, *[Response(Op.NOP, 0xDEAD0000, 0, 1)] * 4)
        number += 4

    with liar.connect() as session:
        session.set_spin(1_000_000)  # so that there is always something new before it sleeps
        with meanwhile(answer):
            before = time.monotonic()
            raised = within_the_limit(calls(session)[call])
            assert isinstance(raised, AccessTimeout), raised
            assert time.monotonic() - before < 2.0
        assert session.statistics["strange"] > 4


@pytest.mark.clause("LIFE-4")
def test_a_thread_comes_out_of_a_session_whose_back_is_silent(liar: Liar) -> None:
    """The back never looks at the front's state: closing does not need it to get a thread out, whatever it waits for."""
    session = liar.connect()
    irq = session.acquire("dev0").irq(0)
    ended: list[PcisplitError] = []
    ready = threading.Event()

    def wait() -> None:
        ready.set()
        try:
            irq.wait(None)
        except PcisplitError as problem:
            ended.append(problem)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    ready.wait()
    assert within_the_limit(session.close) is None
    thread.join(LIMIT)
    assert [type(problem) for problem in ended] == [SessionGone]


@pytest.mark.clause("LIFE-4")
def test_waiting_in_a_trio_task_ends_when_the_doorbell_is_closed(liar: Liar) -> None:
    import trio

    with liar.connect() as session:
        os.close(liar.ring)
        liar.ring = os.dup(liar.fds[DMA])  # closed again at the end

        async def main() -> None:
            with trio.fail_after(LIMIT):
                await session.acquire("dev0").irq(0).wait_async()

        with pytest.raises(SessionGone):
            trio.run(main)
