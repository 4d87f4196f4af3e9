# SPDX-License-Identifier: MIT
"""A back whose answers break the rules, come late, or come in bad company."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcisplit.errors import AccessError, AccessTimeout, BusyError, PcisplitError
from pcisplit.front.slots import pack, unpack_untrusted
from pcisplit.messages import Event, Request, Response
from pcisplit.wire import Error, Op
from tests.liar import Liar


@pytest.fixture
def liar() -> Iterator[Liar]:
    with Liar() as liar:
        yield liar


def with_error(number: int, ident: int) -> bytes:
    octets = bytearray(Response(Op.BAR_READ, ident, 0, 1, value=7).to_bytes())
    octets[2:4] = number.to_bytes(2, "little", signed=True)
    return bytes(octets)


@pytest.mark.clause("THR-32")
@pytest.mark.parametrize("number", [1, 32767, -6, -59, -64, -32768])
def test_an_error_that_is_not_of_the_table(liar: Liar, number: int) -> None:
    with liar.connect() as session:
        liar.answer(0, with_error(number, 0))
        with pytest.raises(AccessError) as odd:
            session.acquire("dev0").bar(0).read32(0)
        assert odd.value.code is Error.OP_FAILED
        assert session.statistics["strange"] == 1
        assert not isinstance(odd.value, BusyError)


@pytest.mark.clause("THR-32")
def test_an_octet_that_is_not_zero_loses_no_other_answer(liar: Liar) -> None:
    with liar.connect() as session, session.trace() as crossed:
        idents = session._handle.submit([Request(Op.BAR_READ, width=4, offset=4 * n) for n in range(8)])
        answers = [Response(Op.BAR_READ, ident, 0, 1, value=100 + ident).to_bytes() for ident in idents]
        answers[3] = answers[3][:-1] + b"\x01"
        liar.answer(0, *answers)
        got = session._handle.poll()
        assert [answer.id for answer in got] == idents
        assert [answer.error for answer in got] == [0, 0, 0, Error.OP_FAILED, 0, 0, 0, 0]
        assert [answer.value for answer in got if not answer.error] == [100 + n for n in range(8) if n != 3]
        assert session.statistics["strange"] == 1
    assert len(crossed) == 16


def test_answers_that_come_before_an_impossible_index_are_not_lost(liar: Liar) -> None:
    with liar.connect() as session:
        (ident,) = session._handle.submit([Request(Op.NOP)])
        liar.answer(0, Response(Op.NOP, ident, 0, 1))
        assert session._handle.poll_or_wait()[0].id == ident


@pytest.mark.clause("RING-9")
def test_late_answers_of_many_reads_are_dropped_and_counted(liar: Liar) -> None:
    """What was given up after a timeout does not come back as an answer of the next call, nor does it fill the table."""
    with liar.connect() as session:
        memory = session.acquire("dev0").bar(0)
        number = 0
        for _ in range(3):
            with pytest.raises(AccessTimeout):
                memory.read_many(range(0, 40, 4))
            late = [Response(Op.BAR_READ, ident, 0, 1, value=0xBAD) for ident in range(number, number + 10)]
            liar.answer(number, *late)
            number += 10
        good = [Response(Op.BAR_READ, ident, 0, 1, value=5) for ident in range(number, number + 10)]
        liar.answer(number, *good)
        assert memory.read_many(range(0, 40, 4)) == [5] * 10
        assert session.statistics == {"late": 30, "strange": 0, "stale": 0}


@pytest.mark.clause("RING-5")
def test_more_reads_than_the_table_holds_leave_nothing_behind(liar: Liar) -> None:
    with liar.connect() as session:
        with pytest.raises(AccessError) as full:
            session.acquire("dev0").bar(0).read_many(range(0, 4 * 257, 4))
        assert full.value.code is Error.BUSY
        liar.words.store(0x40, 256)  # all taken
        liar.answer(0, *[Response(Op.BAR_READ, ident, 0, 1) for ident in range(256)])
        assert session._handle.poll() == []
        assert session.statistics["late"] == 256


def test_answers_of_somebody_else_are_counted(liar: Liar) -> None:
    """Requests that were submitted beside ``read_many`` are answered meanwhile."""
    with liar.connect() as session:
        session._handle.submit([Request(Op.NOP)])
        answers = [Response(Op.NOP, 0, 0, 1)] + [Response(Op.BAR_READ, ident, 0, 1, value=ident) for ident in (1, 2)]
        liar.answer(0, *answers)
        assert session.acquire("dev0").bar(0).read_many([0, 4]) == [1, 2]
        assert session.statistics["late"] == 1


SLOTS = st.binary(min_size=64, max_size=64)


@pytest.mark.clause("THR-8", "THR-32")
@settings(max_examples=200, deadline=None)
@given(tails=st.lists(st.binary(min_size=60, max_size=60), min_size=1, max_size=8), ours=st.booleans())
def test_any_octets_end_as_a_value_or_an_error(tails: list[bytes], ours: bool) -> None:
    with Liar() as liar, liar.connect(timeout=0.001) as session, session.trace() as crossed:
        octets = [
            tail[:4] + n.to_bytes(4, "little") + tail[4:] if ours else tail[:4] + tail for n, tail in enumerate(tails)
        ]
        liar.answer(0, *octets)
        device = session.acquire("dev0")
        for call in (device.nop, lambda: device.bar(0).read_many([0, 4])):
            with contextlib.suppress(PcisplitError):
                call()
    assert len(crossed) >= len(tails)


@given(SLOTS)
def test_slots_by_struct_are_slots_by_the_wire(octets: bytes) -> None:
    """The quick codec against construct, reserved octets aside, for what construct accepts."""
    for kind in (Request, Response, Event):
        slot = unpack_untrusted(kind, octets[:2] + b"\0\0" + octets[4:] if kind is Event else octets)
        assert kind.from_bytes_untrusted(slot.to_bytes()) == slot
        if isinstance(slot, Request):
            assert pack(slot) == slot.to_bytes()


def test_a_number_that_does_not_fit_is_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack(Request(Op.BAR_READ, offset=-1))
