# SPDX-License-Identifier: MIT
"""Cases of the rings, doorbells and hints of ``spec/region.md``, kept by a peer that behaves."""

import os
import select

from pcisplit import wire
from pcisplit.conformance.case import DEADLINE, NotRun, case, expect
from pcisplit.conformance.octets import U32, expect_all, expect_error
from pcisplit.conformance.peer import still, until
from pcisplit.conformance.target import Target
from pcisplit.wire import BarFlag, Direction, Error, EventKind, Feature, Op, RequestFlag, RingIndex


@case("RING-7", "RING-8", "RING-30")
def case_nop(target: Target) -> None:
    """A nop is answered once, with success and its own op, id and device, and with nothing in the other fields."""
    with target.session() as peer:
        answer = peer.do(Op.NOP)
        expect(answer[6:] == (0, 0, 0), "zero in value, detail and length", str(answer))
        expect(answer.generation == peer.generations[0], f"generation {peer.generations[0]}", str(answer.generation))
        peer.quiet(0.05)
        expect(peer.back("rsp_prod") == peer.rsp_cons, "one response", "another one")


@case("RING-8", "THR-2")
def case_any_id(target: Target) -> None:
    """An id is any number, and two requests may even have the same: it is echoed and means nothing to the back."""
    with target.session() as peer:
        ids = [0, 1, 255, 256, 257, 0x7FFFFFFF, 0x80000000, U32, 5, 5, 5, U32, 0]
        answers = peer.ask_all([peer.slot(Op.NOP, id=number) for number in ids])
        expect([answer.id for answer in answers] == ids, f"the ids {ids}", str([answer.id for answer in answers]))


@case("ORD-3", "RING-7")
def case_full_ring(target: Target) -> None:
    """As many requests as the ring has slots in flight at once, answered in order."""
    with target.session() as peer:
        for _ in range(8):
            expect_all(
                peer.ask_all([peer.slot(Op.NOP) for _ in range(peer.ring(RingIndex.REQUEST).slots)]), Error.SUCCESS
            )


@case("RING-2", "RING-7")
def case_wrap(target: Target) -> None:
    """70 000 nops in batches of changing size: the rings wrap, the count passes 2^16, none is lost."""
    with target.session() as peer:
        total, size = 0, 1
        while total < 70_000:
            expect_all(peer.ask_all([peer.slot(Op.NOP) for _ in range(size)]), Error.SUCCESS)
            total, size = total + size, size * 5 % 257
        expect(peer.back("requests") >= total, f"{total} requests counted", str(peer.back("requests")))


@case("RING-4", "RING-6")
def case_no_room_for_responses(target: Target) -> None:
    """While the front takes no responses the back publishes no more than fit, and takes no request it cannot answer."""
    with target.session() as peer:
        room = peer.ring(RingIndex.RESPONSE).slots
        done = peer.rsp_cons
        first, second = ([peer.slot(Op.NOP) for _ in range(room)] for _ in range(2))
        peer.publish(*first)
        peer.wait(lambda: (peer.back("rsp_prod") - done) & U32 == room, f"{room} responses")
        peer.publish(*second)
        still(0.2, lambda: (peer.back("rsp_prod"), peer.back("req_cons")), "rsp_prod and req_cons of a full ring")
        expect((peer.back("req_cons") - done) & U32 == room, f"{room} requests taken", str(peer.back("req_cons")))
        ids = [int.from_bytes(slot[4:8], "little") for slot in first + second]
        answers = peer.take(room) + peer.take(room)
        expect(
            [answer.id for answer in answers] == ids, "every response, in order", str([answer.id for answer in answers])
        )


@case("RING-10", "RING-11")
def case_no_lost_wakeup(target: Target) -> None:
    """3000 nops, each waited for as the specification says, with pauses that let the back fall asleep at any point."""
    with target.session() as peer:
        for turn in range(3000):
            peer.nop()
            for _ in range(turn % 97):  # from no pause to longer than a back may spin
                peer.back("sleeping")


@case("RING-11")
def case_kick_for_each_index(target: Target) -> None:
    """A front that sleeps is kicked by the response's index alone."""
    with target.session() as peer:
        bell = peer.fd(Direction.BACK_TO_FRONT)
        for _ in range(200):
            while select.select([bell], [], [], 0)[0]:
                os.read(bell, 65536)
            peer.store("sleeping", 1)
            peer.publish(peer.slot(Op.NOP))
            expect(bool(select.select([bell], [], [], DEADLINE)[0]), "a kick with the response", "nothing")
            until(lambda: peer.back("rsp_prod") != peer.rsp_cons, "a response behind the kick")
            peer.store("sleeping", 0)
            peer.take()


@case("RING-20")
def case_eventfd_never_read(target: Target) -> None:
    """The back leaves the doorbell's count alone: the front finds every kick it made."""
    with target.session() as peer:
        for _ in range(20):
            peer.publish(peer.slot(Op.NOP))
            peer.kick()
            peer.take()
        count = int.from_bytes(os.read(peer.fd(Direction.FRONT_TO_BACK), 8), "little")
        expect(count == peer.kicks, f"{peer.kicks} kicks in the eventfd", str(count))
        peer.nop()


@case("RING-13", "RING-10")
def case_late_kick(target: Target) -> None:
    """Requests published without the kick that was due are all found at the next kick."""
    with target.session() as peer:
        peer.quiet(0.05)  # an idle back has fallen asleep, unless it never does
        slots = [peer.slot(Op.NOP) for _ in range(10)]
        peer.fill(*slots)
        peer.req_prod = (peer.req_prod + len(slots)) & U32
        peer.store("req_prod", peer.req_prod)
        peer.quiet(0.05)
        peer.kick()
        expect_all(peer.take(len(slots)), Error.SUCCESS)


@case("REG-30", "BAR-11")
def case_events(target: Target) -> None:
    """An event for each posted error, after the device state; those that do not fit are dropped and counted."""
    with target.session() as peer:
        if not peer.info.features & Feature.EVENTS:
            raise NotRun("the backend has no events")
        wrong = {"region": 5, "width": 3, "flags": RequestFlag.POSTED}  # a width that no access has
        for number in range(1, 201):
            peer.publish(peer.slot(Op.BAR_WRITE, **wrong))
            peer.nop()
            expect(peer.device("posted_errors") == number, f"{number} posted errors", str(peer.device("posted_errors")))
        written, dropped = peer.back("evt_prod"), peer.back("events_dropped")
        slots = peer.ring(RingIndex.EVENT).slots
        expect(written == slots, f"the {slots} events that fit while none is taken", str(written))
        expect(dropped == 200 - slots, f"{200 - slots} dropped events counted", str(dropped))
        for hint in peer.hints():
            expect(hint.kind == EventKind.POSTED_ERROR and hint.device == 0, "events of posted errors", str(hint))
            expect(hint.value == Error.BAD_SIZE % (1 << 64), "bad_size, sign-extended", f"{hint.value:#x}")
            expect(hint.generation == peer.generations[0], "the device's generation", str(hint.generation))


@case("RING-10", "RING-11", "REG-30")
def case_events_again(target: Target) -> None:
    """When the front has taken its events there is room for new ones."""
    with target.session() as peer:
        wrong = {"region": 5, "width": 3, "flags": RequestFlag.POSTED}
        for _ in range(3 * wire.EVENT_SLOTS):
            peer.publish(peer.slot(Op.BAR_WRITE, **wrong))
            peer.nop()
            peer.hints()
        expect(peer.back("evt_prod") == 3 * wire.EVENT_SLOTS, "an event for each error", str(peer.back("evt_prod")))
        expect(
            peer.back("events_dropped") == 0, "no event dropped while all are taken", str(peer.back("events_dropped"))
        )


@case("RING-30", "CFG-7")
def case_nop_needs_no_decode(target: Target) -> None:
    """A nop touches nothing: it is answered with the decode off."""
    with target.session(command=0) as peer:
        expect_error(peer.ask(Op.NOP), Error.SUCCESS)
        bar = next((bar.index for bar in peer.info.devices[0].bars if not bar.flags & BarFlag.IO), None)
        if bar is not None:
            expect_error(peer.ask(Op.BAR_READ, region=bar, width=4), Error.DECODE_DISABLED)
