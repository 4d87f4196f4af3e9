# SPDX-License-Identifier: MIT
"""Cases of the rings, doorbells and hints of ``spec/region.md``, kept by a peer that behaves."""

import os
import select

from pcisplit.conformance.case import DEADLINE, NotRun, case, expect
from pcisplit.conformance.octets import U32, expect_all, expect_error
from pcisplit.conformance.target import Target
from pcisplit.conformance.watch import still, until
from pcisplit.wire import BarFlag, Direction, Error, EventKind, Feature, Op, RequestFlag, RingIndex, State


@case("RING-7", "RING-8", "RING-30")
def case_nop(target: Target) -> None:
    """A nop is answered once, with success and its own op, id and device, and with nothing in the other fields."""
    with target.session() as peer:
        answer = peer.do(Op.NOP)
        rest = (answer.value, answer.detail, answer.length)
        expect(not any(rest), "zero in value, detail and length", str(rest))
        expect(answer.generation == peer.generations[0], f"generation {peer.generations[0]}", str(answer.generation))
        peer.quiet(0.05)
        expect(not peer.answered(), "one response", "another one")
        expect(peer.back("rsp_prod") == peer.rsp_cons, f"{peer.rsp_cons} responses announced", "another number")


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
        first, second = ([peer.slot(Op.NOP) for _ in range(room)] for _ in range(2))
        peer.publish(*first)
        peer.wait(lambda: peer.count_answers() == room, f"{room} responses")
        until(lambda: peer.back("req_cons") == peer.req_prod, "the slots of the requests given back")
        before = peer.back("requests")
        peer.publish(*second)
        still(0.2, lambda: (peer.back("rsp_prod"), peer.back("req_cons")), "rsp_prod and req_cons of a full ring")
        expect(peer.back("requests") == before, f"{before} requests taken", str(peer.back("requests")))
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
            until(peer.answered, "a response behind the kick")
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
        peer.store("req_prod", peer.req_prod)
        peer.quiet(0.05)
        peer.kick()
        expect_all(peer.take(len(slots)), Error.SUCCESS)


@case("RING-16", "RING-10")
def case_unannounced(target: Target) -> None:
    """Slots are taken by their sequence, announced or not: an honest front may announce late."""
    with target.session() as peer:
        for size in (1, 5, 64):
            slots = [peer.slot(Op.NOP) for _ in range(size)]
            peer.fill(*slots)
            peer.kick()
            expect_all(peer.take(size), Error.SUCCESS)
            peer.tell()
        peer.nop()


@case("RING-16")
def case_other_sequences(target: Target) -> None:
    """A slot with any sequence but the one that comes next is not there yet."""
    with target.session() as peer:
        peer.nop()
        slots = peer.ring(RingIndex.REQUEST).slots
        for wrong in (0, peer.req_prod, peer.req_prod + 2, peer.req_prod + 1 + slots, U32):
            peer.write(peer.req_prod, peer.slot(Op.NOP), wrong)
            peer.kick()
            still(0.05, lambda: peer.back("requests"), "the requests taken")
        peer.nop()


@case("RING-15", "RING-17")
def case_announced_in_the_end(target: Target) -> None:
    """A back that comes to rest has announced what it published and given back what it took."""
    with target.session() as peer:
        for size in (1, 3, 200):
            peer.ask_all([peer.slot(Op.NOP) for _ in range(size)])
            until(lambda: peer.back("rsp_prod") == peer.rsp_cons, "responses announced")
            until(lambda: peer.back("req_cons") == peer.req_prod, "requests given back")


@case("RING-18")
def case_states_are_kicked(target: Target) -> None:
    """The back kicks after a change of its state word, also a front that does not say it sleeps."""
    with target.meet() as peer:
        bell = peer.fd(Direction.BACK_TO_FRONT)
        while select.select([bell], [], [], 0)[0]:
            os.read(bell, 65536)
        peer.step(State.INITIALISING)
        peer.step(State.INITIALISED)
        expect(bool(select.select([bell], [], [], DEADLINE)[0]), "a kick with Connected", "nothing")
        os.read(bell, 65536)
        until(lambda: peer.back("state") == State.CONNECTED, "Connected")
        peer.step(State.CONNECTED)
        peer.step(State.CLOSING)
        expect(bool(select.select([bell], [], [], DEADLINE)[0]), "a kick with Closing", "nothing")


@case("RING-17", "RING-11")
def case_given_back_to_a_sleeper(target: Target) -> None:
    """A front that sleeps for room in the request ring is kicked when slots are given back, though nothing is answered."""
    with target.session() as peer:
        bar = peer.info.devices[0].bars[0].index
        write = {"region": bar, "width": 3, "flags": RequestFlag.POSTED}  # refused, so harmless to any device
        for _ in range(4):
            slots = peer.ring(RingIndex.REQUEST).slots
            peer.publish(*(peer.slot(Op.BAR_WRITE, **write) for _ in range(slots)))
            peer.wait(lambda: peer.back("req_cons") == peer.req_prod, "the whole ring given back")
        peer.nop()


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
        until(lambda: peer.back("evt_prod") == peer.ring(RingIndex.EVENT).slots, "as many events as fit, announced")
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
        count = 3 * peer.ring(RingIndex.EVENT).slots
        for _ in range(count):
            peer.publish(peer.slot(Op.BAR_WRITE, **wrong))
            peer.nop()
            peer.hints()
        until(lambda: peer.back("evt_prod") == count, f"{count} events for {count} errors")
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
