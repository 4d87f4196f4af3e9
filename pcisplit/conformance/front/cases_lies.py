# SPDX-License-Identifier: MIT
"""Cases of a front whose back lies in its answers, its rings and its words, or dies."""

import time

from pcisplit.conformance.case import expect
from pcisplit.conformance.front.back import PAGE, SLOTS
from pcisplit.conformance.front.case import READ, case
from pcisplit.conformance.front.process import PATIENCE, Bench, Told
from pcisplit.conformance.octets import U32, Answer, poke
from pcisplit.wire import Error, Op, State

# --- answers that lie ----------------------------------------------------------------------------------------------------


@case("RING-9")
def case_late_answer(bench: Bench) -> None:
    """An answer that comes after its caller gave up is dropped, and is not the answer of the next request."""
    bench.begin()
    bench.start(READ)
    lost = bench.back.take()
    bench.fails(Error.TIMEOUT, what="a read that nobody answers")
    bench.start(READ)
    asked = bench.back.take()
    bench.back.answer(lost, value=0xBAD)
    bench.back.answer(asked, value=0x600D)
    expect(bench.end() == [0x600D], "the value of the second read", "another")
    bench.lives()


@case("RING-7", "THR-32")
def case_double_answer(bench: Bench) -> None:
    """Of two answers to one request the first counts; the second is not the answer of the next request."""
    bench.begin()
    bench.start(READ)
    first = bench.back.take()
    bench.back.answer(first, value=1)
    bench.back.answer(first, value=0xBAD)
    expect(bench.end() == [1], "the first answer", "the second")
    for number in range(20):
        bench.lives(number)


@case("THR-32", "RING-9", "THR-8")
def case_strange_ids(bench: Bench) -> None:
    """Answers to ids that nobody asked with are dropped."""
    bench.begin()
    bench.start(READ)
    asked = bench.back.take()
    for number in (0, 1, asked.id + 1, asked.id ^ 0x100, asked.id ^ 0x80000000, U32):
        if number & U32 != asked.id:
            bench.back.answer(asked, id=number & U32, value=0xBAD)
    bench.back.answer(asked, value=7)
    expect(bench.end() == [7], "the answer with the id of the request", "another")
    bench.lives()


@case("LIFE-23")
def case_stale_answer(bench: Bench) -> None:
    """An answer of another generation is not believed: stale."""
    bench.begin()
    for generation in (bench.back.generation + 1, bench.back.generation - 1, 0):
        bench.start(READ)
        bench.back.answer(bench.back.take(), generation=generation, value=0xBAD)
        bench.fails(Error.STALE, what="a read answered by another generation")
    bench.lives()


@case("LIFE-23", "LIFE-22")
def case_reset(bench: Bench) -> None:
    """The answer to a reset brings the new generation, which later requests carry."""
    bench.begin()
    bench.start("reset")
    asked = bench.back.take()
    expect(asked.op == Op.RESET, "a reset", str(asked))
    bench.back.generation += 1
    bench.back.store_at(PAGE + 2 * SLOTS * 64 + 4, bench.back.generation)
    bench.back.answer(asked, value=2)
    bench.end()
    bench.lives()


@case("THR-32", "ERR-1")
def case_strange_errors(bench: Bench) -> None:
    """An error that the table does not have is op_failed, never success; reserved octets that are not zero too."""
    bench.begin()
    for error in (1, 5, 0x7FFF, -0x8000, -6, -1000):
        bench.start(READ)
        bench.back.answer(bench.back.take(), error=error, value=0xBAD)
        bench.fails(Error.OP_FAILED, what=f"a read answered with error {error}")
    bench.start(READ)
    asked = bench.back.take()
    sound = Answer(asked.op, 0, asked.id, 0, 0, bench.back.generation, 5, sequence=bench.back.filled + 1)
    bench.back.put(poke(sound.build(), 40, 1))
    bench.back.tell()
    bench.fails(Error.OP_FAILED, what="a read whose answer has a reserved octet that is not zero")
    bench.lives()


@case("ERR-1")
def case_errors(bench: Bench) -> None:
    """An error of the table is told as it is."""
    bench.begin()
    for error in (Error.DENIED, Error.FAULTED, Error.DECODE_DISABLED, Error.INVALID_OFFSET):
        bench.start(READ)
        bench.back.answer(bench.back.take(), error=error)
        bench.fails(error, what=f"a read answered with {error.name.lower()}")


# --- rings that lie ------------------------------------------------------------------------------------------------------


@case("RING-16", "RING-10")
def case_other_sequence(bench: Bench) -> None:
    """A response with a sequence that is not the next is not there yet."""
    bench.begin()
    for wrong in (0, 2, 3, SLOTS + 1, U32):
        bench.start(READ)
        asked = bench.back.take()
        turn = bench.back.filled
        bench.back.answer(asked, tell=False, sequence=(turn + wrong) & U32 if wrong != U32 else U32, value=0xBAD)
        bench.back.pause(0.05)
        bench.back.filled = turn
        bench.back.answer(asked, value=wrong)
        expect(bench.end() == [wrong], f"the value {wrong} of the slot with its sequence", "another")


@case("RING-16")
def case_unannounced_answers(bench: Bench) -> None:
    """A response is taken by its sequence, announced or not; a front that sleeps finds it at a kick."""
    bench.begin()
    for number in range(10):
        bench.start(READ)
        bench.back.answer(bench.back.take(), tell=False, value=number)
        bench.back.kick()
        expect(bench.end() == [number], str(number), "another value")


@case("RING-3", "THR-8")
def case_overrun(bench: Bench) -> None:
    """A prod ahead of a slot that is not there, or further than the ring is long, ends the session with ring_overrun."""
    for ahead in (1, SLOTS, SLOTS + 1, 0x7FFFFFF0):
        with Bench(bench.command) as other:
            other.begin()
            other.start(READ)
            other.back.take()
            other.back.store("rsp_prod", other.back.filled + ahead)
            other.back.kick()
            other.fails(Error.RING_OVERRUN, Error.GONE, what=f"a read while rsp_prod is {ahead} ahead of the slots")


@case("RING-3")
def case_impossible_cons(bench: Bench) -> None:
    """A back that gives back what was never published ends the session, and no slot is written over."""
    for lie in (3 * SLOTS, 1000, 0x80000000):
        with Bench(bench.command) as other:
            other.begin()
            other.lives()
            other.back.store("req_cons", other.back.taken + lie)
            error = 0
            for number in range(2 * SLOTS):
                try:
                    other.say(f"bar-post 0 4 4 {number}")
                except Told as told:
                    error = told.error
                    break
            wanted = (Error.RING_OVERRUN, Error.GONE)
            expect(error in wanted, f"ring_overrun for req_cons {lie} ahead", f"error {error} after {number} writes")


@case("THR-8", "LIFE-30")
def case_garbage_words(bench: Bench) -> None:
    """Words that mean nothing to a front, and its device state, change nothing."""
    bench.begin()
    for offset in (28, 68, 132, 320, 328, 376):
        bench.back.store_at(offset, 0xDEADBEEF)
    bench.lives()


@case("LIFE-30", "LIFE-4")
def case_deadline_under_kicks(bench: Bench) -> None:
    """A deadline holds though the doorbell rings without end and strange answers come."""
    bench.begin()
    bench.start(READ)
    asked = bench.back.take()
    began = time.monotonic()
    while time.monotonic() < began + 3 * PATIENCE / 1000 and not bench.spoke():
        bench.back.kick()
        if (bench.back.filled - bench.back.front("rsp_cons")) & U32 < SLOTS // 2:
            bench.back.answer(asked, id=asked.id ^ 0x4000_0000, value=0xBAD)
    took = time.monotonic() - began
    bench.fails(Error.TIMEOUT, what="a read that nobody answers")
    expect(took < 2 * PATIENCE / 1000 + 0.2, f"timeout after {PATIENCE} ms", f"after {1000 * took:.0f} ms")


# --- death -----------------------------------------------------------------------------------------------------------------


@case("LIFE-4", "LIFE-31")
def case_back_dies(bench: Bench) -> None:
    """A back that dies while the front waits is told at once, as a failure of the back."""
    bench.say("deadline 20000")
    bench.start(f"connect {bench.back.path} dev0")
    bench.back.connect()
    bench.end()
    bench.start(READ)
    bench.back.take()
    bench.back.hang_up()
    bench.fails(Error.OP_FAILED, what="a read while the back dies")
    bench.start(READ)
    bench.fails(what="a read without a back")


@case("LIFE-4")
def case_back_dies_at_the_meeting(bench: Bench) -> None:
    """A back that dies before it is Connected, or before it replies, is an error of connect."""
    bench.start(f"connect {bench.back.path} dev0")
    bench.back.hear()
    assert bench.back.sock
    bench.back.sock.close()
    bench.fails(what="a connect to a back that says nothing and dies")
    with Bench(bench.command) as other:
        other.start(f"connect {other.back.path} dev0")
        other.back.meet()
        other.back.hang_up()
        other.fails(what="a connect to a back that dies before it is Connected")


@case("LIFE-1", "LIFE-5", "RING-10")
def case_back_closes(bench: Bench) -> None:
    """A back that becomes Closing with a reason ends every wait, and the front closes too."""
    bench.begin()
    bench.start(READ)
    bench.back.take()
    bench.back.step(State.CLOSING, int(Error.BAD_REQUEST))
    bench.back.step(State.CLOSED)
    assert bench.back.sock
    bench.back.sock.shutdown(1)
    bench.fails(Error.GONE, Error.BAD_REQUEST, what="a read while the back closes")
    bench.say("close")
    expect(bench.back.front("state") in (State.CLOSING, State.CLOSED), "a front that is Closing", "another state")
