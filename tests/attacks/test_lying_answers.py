# SPDX-License-Identifier: MIT
"""A back whose answers break the rules, come late, or come in bad company."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcisplit import wire
from pcisplit.front.slots import pack, unpack_untrusted
from pcisplit.proto.errors import AccessError, AccessTimeout, BusyError, PcisplitError
from pcisplit.proto.slots import Event, Request, Response
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
        answers = [Response(Op.BAR_READ, ident, 0, 1, value=100 + n).to_bytes() for n, ident in enumerate(idents)]
        answers[3] = answers[3][:50] + b"\x01" + answers[3][51:]
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


def asked(liar: Liar, number: int) -> int:
    """The id of request slot `number`."""
    at = wire.PAGE_SIZE + wire.SLOT_SIZE * number
    return int.from_bytes(liar.f2b[at + 4 : at + 8], "little")


def pack_of(liar: Liar, number: int, values: tuple[int, ...]) -> Response:
    """The answer to the pack of reads in request slot `number`."""
    return Response(Op.BAR_READS, asked(liar, number), 0, 1, values=values, done=len(values))


@pytest.mark.clause("RING-9", "BAR-43")
def test_late_answers_of_many_reads_are_dropped_and_counted(liar: Liar) -> None:
    """What was given up after a timeout does not come back as an answer of the next call, nor does it fill the table."""
    with liar.connect() as session:
        memory = session.acquire("dev0").bar(0)
        for number in range(3):
            with pytest.raises(AccessTimeout):
                memory.read_many(range(0, 40, 4))
            liar.answer(number, pack_of(liar, number, (0xBAD,) * 10))
        assert len({asked(liar, number) for number in range(3)}) == 3
        session._handle.poll()
        assert session.statistics == {"late": 3, "strange": 0, "stale": 0}


@pytest.mark.clause("THR-32", "BAR-43")
@pytest.mark.parametrize("done, count", [(3, 4), (0, 1), (11, 10), (0xFFFFFFFF, 10)])
def test_a_pack_that_is_answered_with_too_few_values(liar: Liar, done: int, count: int) -> None:
    with liar.connect(timeout=1.0) as session:
        octets = bytearray(Response(Op.BAR_READS, 0, 0, 1, values=(7,) * 10).to_bytes())
        octets[56:60] = done.to_bytes(4, "little")
        liar.answer(0, bytes(octets))
        with pytest.raises(AccessError) as lie:
            session.acquire("dev0").bar(0).read_many(range(0, 4 * count, 4))
        assert lie.value.code is Error.OP_FAILED


@pytest.mark.clause("LIFE-23", "THR-32", "BAR-43")
@pytest.mark.parametrize("lie, code", [({"generation": 2}, Error.STALE), ({"device": 1}, Error.OP_FAILED)])
def test_values_of_a_pack_that_is_not_believed_do_not_count(liar: Liar, lie: dict[str, int], code: Error) -> None:
    with liar.connect(timeout=1.0) as session:
        fields = {"op": Op.BAR_READS, "generation": 1, "values": (7,) * 3, "done": 3, **lie}
        liar.answer(0, Response(**fields))  # type: ignore[arg-type]
        with pytest.raises(AccessError, match="number 1 of 10") as refused:
            session.acquire("dev0").bar(0).read_many(range(0, 40, 4))
        assert refused.value.code is code


@pytest.mark.clause("THR-32")
@pytest.mark.parametrize("wrong", [{"op": Op.NOP}, {"device": 1}])
def test_an_answer_to_another_request_than_its_id_says(liar: Liar, wrong: dict[str, int]) -> None:
    with liar.connect(timeout=1.0) as session:
        liar.answer(0, Response(**{"op": Op.BAR_READ, "generation": 1, **wrong}))  # type: ignore[arg-type]
        with pytest.raises(AccessError) as lie:
            session.acquire("dev0").bar(0).read32(0)
        assert lie.value.code is Error.OP_FAILED
        assert session.statistics["strange"] == 1


@pytest.mark.clause("RING-5")
def test_a_table_full_of_requests_is_waited_for(liar: Liar) -> None:
    with liar.connect() as session:
        idents = session._handle.submit([Request(Op.NOP)] * 256)
        with pytest.raises(AccessTimeout):
            session.acquire("dev0").bar(0).read_many(range(0, 4 * 257, 4))
        liar.answer(0, *[Response(Op.NOP, ident, 0, 1) for ident in idents])
        came: list[Response] = []
        while len(came) < 256:
            came += session._handle.poll_or_wait()
        assert [response.id for response in came] == idents
        assert session.statistics == {"late": 0, "strange": 0, "stale": 0}


def test_answers_of_somebody_else_are_kept(liar: Liar) -> None:
    """Requests that were submitted beside ``read_many`` are answered meanwhile."""
    with liar.connect() as session:
        (mine,) = session._handle.submit([Request(Op.NOP)])
        place, serial = 1, 1
        liar.answer(
            0, Response(Op.NOP, mine, 0, 1), Response(Op.BAR_READS, place | serial << 8, 0, 1, values=(1, 2), done=2)
        )
        assert list(session.acquire("dev0").bar(0).read_many([0, 4])) == [1, 2]
        assert [response.id for response in session._handle.poll()] == [mine]


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
def test_slots_as_a_front_shows_them_are_slots_of_the_wire(octets: bytes) -> None:
    """The quick codec against the strict one, reserved octets aside."""
    for kind in (Request, Response, Event):
        slot = unpack_untrusted(kind, octets[:2] + b"\0\0" + octets[4:] if kind is Event else octets)
        assert kind.from_bytes_untrusted(slot.to_bytes()) == slot
        if isinstance(slot, Request):
            assert pack(slot) == slot.to_bytes()


def test_a_number_that_does_not_fit_is_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack(Request(Op.BAR_READ, offset=-1))
