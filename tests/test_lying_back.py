# SPDX-License-Identifier: MIT
"""A front whose back lies: it trusts the back for liveness, not for indices [THR-8]."""

import os
import socket
from collections.abc import Iterator

import pytest

from pcisplit import wire
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.errors import AccessError, AccessTimeout, RemoteProtocolError, SessionGone
from pcisplit.proto.meeting import Hello, Need
from pcisplit.proto.slots import Request, Response
from pcisplit.proto.vectors import BOOT
from pcisplit.ring.region import create_region
from pcisplit.wire import Direction, Error, Op, RecordKind, State
from tests.liar import RSP_PROD, Liar
from tests.offsets import offset_of


@pytest.fixture
def liar() -> Iterator[Liar]:
    with Liar() as liar:
        yield liar


@pytest.mark.clause("THR-8", "RING-9")
def test_answers_nobody_asked_for_are_counted(liar: Liar) -> None:
    with liar.connect() as session:
        for number, ident in enumerate((77, 256, 0xFFFFFFFF)):
            liar.answer(number, Response(Op.NOP, ident, 0, 1))
        with pytest.raises(AccessError):
            session.acquire("dev0").nop()
        assert session.statistics["strange"] >= 2


@pytest.mark.clause("LIFE-23", "ORD-15")
def test_an_answer_of_another_generation_is_not_believed(liar: Liar) -> None:
    with liar.connect() as session:
        handle = session._handle
        (ident,) = handle.submit([Request(Op.CONF_READ, device=0, width=4)])
        liar.answer(0, Response(Op.CONF_READ, ident, 0, generation=9, value=0xBAD))
        (answer,) = handle.poll_or_wait()
        assert answer.error == Error.STALE
        assert session.statistics["stale"] == 1


@pytest.mark.clause("THR-8", "RING-3")
@pytest.mark.parametrize("prod", [1, 256, 257, 0x7FFFFFFF])
def test_an_index_that_jumps_ends_the_session(liar: Liar, prod: int) -> None:
    with liar.connect() as session:
        liar.words.store(RSP_PROD, prod)
        with pytest.raises((SessionGone, AccessError)) as ended:
            session.acquire("dev0").nop()
        assert not isinstance(ended.value, AccessError) or ended.value.code is Error.GONE


@pytest.mark.clause("RING-3", "RING-16")
@pytest.mark.parametrize("prod", [0, 0x80000000, 0xFFFFFFFF])
def test_an_index_that_is_behind_is_no_error(liar: Liar, prod: int) -> None:
    """What is taken by its sequence may be announced later."""
    with liar.connect() as session:
        liar.words.store(RSP_PROD, prod)
        with pytest.raises(AccessTimeout):
            session.acquire("dev0").nop()


@pytest.mark.clause("REG-5")
def test_regions_without_their_seals_are_refused() -> None:
    liar = Liar(seals=False)
    with pytest.raises(RemoteProtocolError, match="seals"):
        liar.connect()
    liar.close()


@pytest.mark.clause("REG-5")
def test_regions_of_another_size_are_refused(liar: Liar) -> None:
    os.close(liar.fds[0])
    liar.fds[0] = create_region("short", 4096)
    with pytest.raises(RemoteProtocolError, match="4096 octets"):
        liar.connect()


@pytest.mark.clause("BOOT-3")
def test_records_of_an_unknown_kind_are_skipped(liar: Liar) -> None:
    record = (0x7777).to_bytes(2, "little") + (128).to_bytes(2, "little") + b"\xaa" * 124
    head = bytearray(liar.boot_info[:64])
    length, records = int.from_bytes(head[8:12], "little") + 128, int.from_bytes(head[12:16], "little") + 1
    head[8:12], head[12:16] = length.to_bytes(4, "little"), records.to_bytes(4, "little")
    liar.boot_info = bytes(head) + record + liar.boot_info[64:]
    with liar.connect() as session:  # Python's parser and C's
        assert session.devices == ("dev0",)


@pytest.mark.clause("RING-12")
def test_the_front_kicks_after_its_states(liar: Liar) -> None:
    session = liar.connect()
    assert os.eventfd_read(liar.fds[2]) == 2  # Initialised, Connected
    assert int.from_bytes(liar.f2b[4:8], "little") == State.CONNECTED
    session.close()
    assert os.eventfd_read(liar.fds[2]) == 1
    assert int.from_bytes(liar.f2b[4:8], "little") == State.CLOSING


@pytest.mark.clause("RING-5", "RING-4")
def test_the_front_keeps_to_the_response_slots(liar: Liar) -> None:
    with liar.connect() as session:
        request = Request(Op.NOP, device=0)
        session._handle.submit([request] * 256)
        with pytest.raises(AccessError) as full:
            session._handle.submit([request])
        assert full.value.code is Error.BUSY
        at = offset_of("req_prod")
        assert int.from_bytes(liar.f2b[at : at + 4], "little") == 256


@pytest.mark.clause("IRQ-6", "REG-31")
def test_truth_is_the_counter_not_the_events(liar: Liar) -> None:
    with liar.connect() as session:
        device = session.info.devices[0]
        counter = device.vectors[0].counters
        liar.b2f[counter : counter + 8] = (41).to_bytes(8, "little")
        irq = session.acquire("dev0").irq(0)
        assert irq.wait(1.0) == 41  # no event came
        assert irq.poll() == 0
        liar.b2f[counter : counter + 8] = (42).to_bytes(8, "little")
        assert irq.poll() == 1
        assert liar.b2f[counter : counter + 8] == (42).to_bytes(8, "little")


@pytest.mark.clause("MEET-2")
def test_the_hello_is_one_short_message_at_once() -> None:
    from pcisplit.front.meet import _meet

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    hello = Hello("edu", tuple(Need(f"dev{n}", 1) for n in range(16)), 1 << 20)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(SessionGone):
        _meet(ours, hello)
    octets = theirs.recv(1 << 16)
    assert octets == hello.to_bytes()
    assert len(octets) <= wire.HELLO_MAX
    ours.close()
    theirs.close()


def test_a_boot_info_without_a_doorbell_is_refused() -> None:
    import dataclasses

    block = dataclasses.replace(BOOT, doorbells=BOOT.doorbells[:1]).to_bytes()
    with pytest.raises(RemoteProtocolError, match="doorbell"):
        parse_boot_info_untrusted(block)
    assert BOOT.doorbells[0].index is Direction.FRONT_TO_BACK
    assert RecordKind.DOORBELL in wire.BOOT_RECORDS


@pytest.mark.clause("RING-15")
def test_what_is_left_behind_is_announced_by_polling(liar: Liar) -> None:
    """Also when many empty polls came before it: a back that fell asleep meanwhile would never hear of it."""
    with liar.connect() as session:
        for empty in (0, 3, 20, 100):
            before = liar.requests_announced()
            for _ in range(empty):
                session._handle.poll()
            session.acquire("dev0").bar(0).post(0, 4, 1, publish=False)
            for _ in range(16):
                session._handle.poll()
            assert liar.requests_announced() == before + 1
