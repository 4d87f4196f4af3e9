# SPDX-License-Identifier: MIT
"""Cases of ``spec/lifecycle.md``: states, closing, the death of the front, reset."""

import os
import select

from pcisplit import pci
from pcisplit.conformance.case import DEADLINE, case, expect
from pcisplit.conformance.meeting import hello
from pcisplit.conformance.octets import U32, Answer, expect_all, expect_error
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import ALL_ON, Target
from pcisplit.conformance.watch import still, until
from pcisplit.wire import DeviceState, Direction, Error, Op, RequestFlag, ResetMethod, State

RESET_QUOTA = 5.0


def reset(peer: Peer) -> Answer:
    """Reset device 0. The peer knows the new generation."""
    answer = expect_error(peer.ask(Op.RESET), Error.SUCCESS, what="the first reset of a session")
    peer.generations[0] = answer.generation
    return answer


@case("LIFE-8", "MEET-23", devices=2)
def case_front_that_never_connects(target: Target) -> None:
    """A session whose front stays where it is ends with timeout after 10 seconds, and no other meeting waits for it."""
    with target.meet() as peer:
        with target.session(target.want(target.others()[0])) as other:
            other.nop()
        until(lambda: peer.back("state") == State.CLOSED, "the end of a session that is never connected", 10 + DEADLINE)
        expect(peer.reason == Error.TIMEOUT, "reason timeout", str(peer.reason))


@case("LIFE-1", "LIFE-3", "RING-13")
def case_handshake(target: Target) -> None:
    """The back stays in InitWait until the front is Initialised, and then goes to Connected."""
    with target.meet() as peer:
        still(0.1, lambda: peer.back("state"), "the back's state before the handshake")
        peer.step(State.INITIALISING)
        still(0.1, lambda: peer.back("state"), "the back's state while the front is Initialising")
        expect(peer.back("state") == State.INIT_WAIT, "InitWait", str(peer.back("state")))
        peer.step(State.INITIALISED)
        peer.wait(lambda: peer.back("state") == State.CONNECTED, "Connected")
        peer.step(State.CONNECTED)
        peer.nop()
        expect(peer.reason == 0, "reason 0 in a living session", str(peer.reason))


@case("LIFE-3")
def case_early_request(target: Target) -> None:
    """A request published before the handshake is not executed before it, and is then."""
    with target.meet() as peer:
        peer.publish(peer.slot(Op.NOP))
        peer.step(State.INITIALISING)
        peer.kick()
        still(0.2, lambda: (peer.answered(), peer.back("req_cons")), "responses and req_cons before Connected")
        expect(peer.back("req_cons") == 0, "no request taken before Connected", str(peer.back("req_cons")))
        peer.step(State.INITIALISED)
        expect_all(peer.take(), Error.SUCCESS)


@case("LIFE-2", "LIFE-5", "LIFE-1")
def case_bad_first_state(target: Target) -> None:
    """A front that begins with a state the table does not allow is cut off."""
    for state in (99, U32, 0x80000001, State.INIT_WAIT, State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED):
        with target.meet() as peer:
            peer.step(state)
            peer.ended(Error.BAD_REQUEST, by=f"state {state:#x} after Unknown")


@case("LIFE-2", "LIFE-5")
def case_bad_next_state(target: Target) -> None:
    """A connected front that goes back, or nowhere, is cut off."""
    for state in (State.UNKNOWN, State.INITIALISING, State.INITIALISED, State.INIT_WAIT, State.RECONFIGURED, 77, U32):
        with target.session(command=0) as peer:
            peer.nop()  # by now the back has seen Connected
            peer.quiet(0.02)
            peer.step(state)
            peer.ended(Error.BAD_REQUEST, by=f"state {state:#x} after Connected")


@case("LIFE-2", "LIFE-1")
def case_reconfiguring_alone(target: Target) -> None:
    """A front cannot reconfigure while the back does not."""
    with target.session(command=0) as peer:
        peer.nop()
        peer.step(State.RECONFIGURING)
        peer.ended(Error.BAD_REQUEST, by="Reconfiguring of the front alone")


@case("LIFE-1", "LIFE-7", "RING-13", "LIFE-20")
def case_close(target: Target) -> None:
    """The closing handshake: the back is Closed without a reason, hangs up, and the device is free at once."""
    with target.session() as peer:
        expect(peer.device("state") == DeviceState.ACQUIRED, "a device that is acquired", str(peer.device("state")))
        peer.nop()
        peer.part()
        expect(peer.reason == 0, "no reason for a close in order", str(peer.reason))
        expect(peer.hung_up(DEADLINE), "the socket closed by the back", "an open one")
        with target.dial() as other:
            other.meet(hello(target.want())).connect().nop()


@case("LIFE-6", "RING-7")
def case_close_with_work(target: Target) -> None:
    """On Closing the back answers every request that it has taken, and takes and answers none from then on."""
    with target.session(command=0) as peer:
        peer.publish(*(peer.slot(Op.NOP) for _ in range(200)))
        peer.step(State.CLOSING)
        until(lambda: peer.back("state") in (State.CLOSING, State.CLOSED), "a back that is Closing")
        taken, answered = peer.back("requests"), peer.count_answers()
        expect(taken == answered, f"an answer for each of {taken} requests taken", str(answered))
        peer.publish(*(peer.slot(Op.NOP) for _ in range(8)))
        still(0.1, lambda: (peer.back("requests"), peer.count_answers()), "requests and responses after Closing")
        expect_all(peer.take(answered), Error.SUCCESS)


@case("LIFE-1")
def case_close_unmet(target: Target) -> None:
    """A front may go from Unknown to Closed, and before it is Connected to Closing: the device comes back."""
    with target.meet() as peer:
        peer.step(State.CLOSED)
    target.check_alive()
    with target.meet() as peer:
        peer.step(State.INITIALISING)
        peer.step(State.CLOSING)
        peer.wait(lambda: peer.back("state") == State.CLOSED, "Closed")
    target.check_alive()


@case("LIFE-4", "MEET-15", "THR-3")
def case_front_dies(target: Target) -> None:
    """A front that dies at any point of a session leaves nothing taken."""
    target.dial().close()
    target.meet().close()
    with target.meet() as peer:
        peer.step(State.INITIALISING)
        peer.step(State.INITIALISED)
    with target.session():
        pass
    with target.session() as peer:
        peer.publish(*(peer.slot(Op.NOP) for _ in range(256)))
    target.check_alive()


@case("LIFE-13", "LIFE-4")
def case_nothing_held(target: Target) -> None:
    """After a session the back holds no end of its doorbell: the front's end, kept, comes to its end."""
    with target.session() as peer:
        kept = os.dup(peer.fd(Direction.BACK_TO_FRONT))
    try:
        while select.select([kept], [], [], DEADLINE)[0]:
            if not os.read(kept, 65536):
                return
        expect(False, f"the end of the doorbell within {DEADLINE:g} s", "an open one")
    finally:
        os.close(kept)


@case("LIFE-4", "LIFE-13")
def case_many_sessions(target: Target) -> None:
    """A hundred sessions one after the other, closed in order or not."""
    for turn in range(100):
        with target.session() as peer:
            peer.nop()
            if turn % 2:
                peer.part()


@case("LIFE-22", "ERR-3")
def case_stale(target: Target) -> None:
    """A request of another generation is answered with stale, counted, and not executed."""
    with target.session(command=0) as peer:
        mine = peer.generations[0]
        before = peer.back("stale")
        for other in (mine + 1, mine - 1, mine ^ 0x80000000, U32 - mine):
            write = {"offset": pci.COMMAND, "width": 2, "value": ALL_ON, "generation": other & U32}
            answer = expect_error(peer.ask(Op.CONF_WRITE, **write), Error.STALE)
            expect(answer.generation == mine, f"the device's generation {mine}", str(answer.generation))
        expect(peer.conf_read(pci.COMMAND, 2) == 0, "COMMAND as before", "changed by a stale request")
        expect(peer.back("stale") == before + 4, f"{before + 4} stale requests counted", str(peer.back("stale")))


@case("LIFE-21", "LIFE-22", needs="reset")
def case_reset(target: Target) -> None:
    """A reset says how it was done, bumps the generation, and makes every request of the old one stale."""
    with target.session() as peer:
        old = peer.generations[0]
        answer = reset(peer)
        expect(answer.value in ResetMethod.__members__.values(), "a method of the table", str(answer.value))
        expect(answer.generation != old, f"another generation than {old}", str(answer.generation))
        known = peer.device("generation")
        expect(known == answer.generation, f"generation {answer.generation} in the device state too", str(known))
        expect(peer.device("state") == DeviceState.ACQUIRED, "a device acquired again", str(peer.device("state")))
        expect_error(peer.ask(Op.NOP, generation=old), Error.STALE)
        expect_error(peer.ask(Op.RESET, generation=old), Error.STALE)
        peer.nop()


@case("LIFE-21", "BAR-11", needs="reset")
def case_reset_restores_config(target: Target) -> None:
    """After a reset the virtual configuration space is as acquired, and the counters of the device go on."""
    with target.session(command=0) as peer:
        slots = [(Op.CONF_READ, {"offset": at, "width": 4}) for at in range(0, pci.HEADER_END, 4)]
        first = [answer.value for answer in peer.ask_all([peer.slot(op, **fields) for op, fields in slots])]
        peer.conf_write(pci.COMMAND, 2, ALL_ON)
        peer.conf_write(pci.CACHE_LINE, 1, 0x5A)
        peer.conf_write(pci.INTERRUPT_LINE, 1, 0x5A)
        peer.conf_write(pci.BAR0, 4, 0xFFFFFFFF)
        peer.publish(peer.slot(Op.BAR_WRITE, width=3, flags=RequestFlag.POSTED))
        reset(peer)
        after = [answer.value for answer in peer.ask_all([peer.slot(op, **fields) for op, fields in slots])]
        expect(after == first, "the header of the begin", " ".join(f"{value:08x}" for value in after))
        expect(peer.device("posted_errors") == 1, "posted errors counted on", str(peer.device("posted_errors")))


@case("LIFE-21", needs="reset scratch")
def case_reset_clears(target: Target) -> None:
    """A reset reaches the device: its registers are as at the start."""
    with target.session() as peer:
        place = target.scratch
        first = peer.bar_read(place.bar, place.offset, 4)
        peer.bar_write(place.bar, place.offset, 4, first ^ 0xFFFFFFFF)
        reset(peer)
        peer.conf_write(pci.COMMAND, 2, ALL_ON)
        value = peer.bar_read(place.bar, place.offset, 4)
        expect(value == first, f"{first:#x} in the register after a reset", f"{value:#x}")


@case("LIFE-21", "IRQ-8", needs="reset msi")
def case_reset_disables_interrupts(target: Target) -> None:
    """A reset switches interrupts off: they can be enabled again, and are not busy."""
    with target.session() as peer:
        peer.do(Op.ENABLE_MSI, count=1)
        reset(peer)
        peer.do(Op.ENABLE_MSI, count=1)


@case("ORD-9", "ORD-1", "LIFE-22", needs="reset")
def case_reset_is_a_barrier(target: Target) -> None:
    """What stands before a reset in the ring is executed before it, what stands behind it after it and thus stale."""
    with target.session() as peer:
        nops = [peer.slot(Op.NOP) for _ in range(20)]
        answers = peer.ask_all([*nops[:10], peer.slot(Op.RESET), *nops[10:]])
        expect_all(answers[:11], Error.SUCCESS, "a request before the reset, and the reset")
        expect_all(answers[11:], Error.STALE, "a request of the old generation behind the reset")


@case("LIFE-24", "ERR-3", needs="reset")
def case_reset_quota(target: Target) -> None:
    """A second reset within 5 seconds in a session is answered with quota and does nothing; after them it is done."""
    with target.session() as peer:
        reset(peer)
        known = peer.generations[0]
        for _ in range(3):
            expect_error(peer.ask(Op.RESET), Error.QUOTA, what="a reset at once after a reset")
        expect(peer.device("generation") == known, f"generation {known} still", str(peer.device("generation")))
        peer.nop()
        peer.quiet(RESET_QUOTA + 0.2)
        expect_error(peer.ask(Op.RESET), Error.SUCCESS, what="a reset 5 s after the last")


@case("LIFE-21", needs="no-reset")
def case_no_reset(target: Target) -> None:
    """A device that cannot be reset says so."""
    with target.session() as peer:
        expect_error(peer.ask(Op.RESET), Error.NO_RESET)
        peer.nop()
