# SPDX-License-Identifier: MIT
"""Cases of ``spec/interrupts.md``: vectors, relayed and direct. Each device is one whose trigger register is known."""

import os
import select
import time

from pcisplit import pci
from pcisplit.conformance.case import DEADLINE, NotRun, case, expect
from pcisplit.conformance.meeting import hello
from pcisplit.conformance.octets import U32, expect_error
from pcisplit.conformance.peer import Peer, Refused
from pcisplit.conformance.target import ALL_ON, Target
from pcisplit.conformance.watch import still, until
from pcisplit.proto.errors import error_name
from pcisplit.wire import Error, EventKind, Feature, Op, VectorMode, VectorType

QUOTA = 100
EDU_FACTORIAL, EDU_STATUS, EDU_IRQ_STATUS, EDU_IRQ_ACK = 0x08, 0x20, 0x24, 0x64


def enable(peer: Peer) -> None:
    peer.do(Op.ENABLE_MSI, first=0, count=1)


def disable(peer: Peer) -> None:
    peer.do(Op.DISABLE_MSI, first=0, count=1)


def fire(target: Target, peer: Peer) -> None:
    """Have the device raise its interrupt."""
    peer.bar_write(target.trigger.bar, target.trigger.offset, 4, 1)


def arrives(peer: Peer, count: int) -> None:
    """The counter comes to `count`, announced by a kick."""
    peer.wait(lambda: peer.counter() >= count, f"interrupt {count}")
    expect(peer.counter() == count, f"{count} interrupts", str(peer.counter()))


@case("IRQ-1", "IRQ-5", "IRQ-20", needs="trigger")
def case_interrupt(target: Target) -> None:
    """Each interrupt adds one to the counter and to the total, sets no pending bit, and kicks a front that sleeps."""
    with target.session() as peer:
        expect(peer.counter() == 0 and peer.pending() == 0, "nothing pending in a new session", "something")
        enable(peer)
        for number in range(1, 101):
            fire(target, peer)
            arrives(peer, number)
            until(lambda number=number: peer.total() == number, f"{number} in the total too")  # type: ignore[misc]
            expect(peer.pending() == 0, "no pending bit of a vector that is not masked", f"{peer.pending():#x}")


@case("IRQ-5", "REG-30", needs="trigger")
def case_interrupt_event(target: Target) -> None:
    """The hint of an interrupt names device, vector and counter, and comes after the counter."""
    with target.session() as peer:
        if not peer.info.features & Feature.EVENTS:
            raise NotRun("the backend has no events")
        enable(peer)
        for number in range(1, 20):
            fire(target, peer)
            arrives(peer, number)
            until(peer.hinted, "an event")
            for hint in peer.hints():
                same = (hint.kind, hint.device, hint.vector, hint.value) == (EventKind.INTERRUPT, 0, 0, number)
                expect(same, f"interrupt {number} of vector 0", str(hint))


@case("IRQ-5", needs="trigger")
def case_interrupt_burst(target: Target) -> None:
    """Interrupts faster than the front takes them: the counter has moved after the last, and never too far."""
    with target.session() as peer:
        enable(peer)
        place = {"region": target.trigger.bar, "offset": target.trigger.offset, "width": 4, "value": 1}
        peer.ask_all([peer.slot(Op.BAR_WRITE, **place) for _ in range(200)])
        peer.wait(lambda: peer.counter() > 0, "an interrupt")
        peer.quiet(0.1)
        before = peer.counter()
        expect(before <= 200, "at most 200 interrupts", str(before))
        fire(target, peer)
        arrives(peer, before + 1)


@case("IRQ-5", "IRQ-1", needs="edu msi")
def case_interrupt_factorial(target: Target) -> None:
    """edu computes 10! and raises its interrupt, which is counted once."""
    with target.session() as peer:
        enable(peer)
        peer.bar_write(0, EDU_STATUS, 4, 0x80)
        peer.bar_write(0, EDU_FACTORIAL, 4, 10)
        arrives(peer, 1)
        expect(peer.bar_read(0, EDU_FACTORIAL, 4) == 3628800, "3628800", str(peer.bar_read(0, EDU_FACTORIAL, 4)))
        status = peer.bar_read(0, EDU_IRQ_STATUS, 4)
        expect(status == 1, "interrupt status 1", f"{status:#x}")
        peer.bar_write(0, EDU_IRQ_ACK, 4, status)


@case("IRQ-2", needs="trigger")
def case_enable_twice(target: Target) -> None:
    """Enabling what is enabled is busy, and the vector goes on working."""
    with target.session() as peer:
        enable(peer)
        fire(target, peer)
        arrives(peer, 1)
        for _ in range(3):
            expect_error(peer.ask(Op.ENABLE_MSI, count=1), Error.BUSY)
        fire(target, peer)
        arrives(peer, 2)


@case("IRQ-3", "IRQ-1", needs="msi")
def case_disable_idle(target: Target) -> None:
    """Disabling what is not enabled succeeds, as often as one likes."""
    with target.session() as peer:
        for _ in range(3):
            disable(peer)
        enable(peer)
        disable(peer)
        disable(peer)
        enable(peer)


@case("IRQ-4", "THR-2", needs="msi")
def case_bad_vector(target: Target) -> None:
    """A vector or count that the device does not have is refused, for enable and disable, and changes nothing."""
    with target.session() as peer:
        for op in (Op.ENABLE_MSI, Op.DISABLE_MSI):
            for vector, count in (
                (1, 1),
                (0, 0),
                (0, 2),
                (64, 1),
                (U32, 1),
                (0, U32),
                (U32, U32),
                (0x80000000, 0x80000000),
            ):
                answer = peer.ask(op, first=vector, count=count)
                expect_error(answer, Error.TOO_MANY_VECTORS, what=f"op {op}, vector {vector:#x}, count {count:#x}")
        enable(peer)


@case("IRQ-4", needs="msi")
def case_vector_not_given(target: Target) -> None:
    """A session that asked for no vector has none to enable or disable."""
    with target.session(target.want()._replace(msi=0)) as peer:
        expect_error(peer.ask(Op.ENABLE_MSI, count=1), Error.TOO_MANY_VECTORS)
        expect_error(peer.ask(Op.DISABLE_MSI, count=1), Error.TOO_MANY_VECTORS)


@case("IRQ-8", needs="trigger")
def case_disabled_vector(target: Target) -> None:
    """A vector that is off reaches nobody; enabled again it counts on."""
    with target.session() as peer:
        enable(peer)
        fire(target, peer)
        arrives(peer, 1)
        disable(peer)
        fire(target, peer)
        still(0.2, lambda: peer.counter(), "the counter of a vector that is off")
        enable(peer)
        expect(peer.pending() == 0, "no pending bit after enable", f"{peer.pending():#x}")
        fire(target, peer)
        arrives(peer, 2)


@case("IRQ-8", "LIFE-13", needs="trigger")
def case_vector_of_last_session(target: Target) -> None:
    """A vector left on by a session that died is off in the next one."""
    with target.session() as peer:
        enable(peer)
        fire(target, peer)
    with target.session() as peer:
        expect(peer.counter() == 0 and peer.pending() == 0, "counter and pending bit 0", "others")
        fire(target, peer)
        still(0.1, lambda: peer.counter(), "the counter of a vector that nobody enabled")
        enable(peer)


@case("IRQ-9", "ERR-3", needs="trigger")
def case_interrupt_quota(target: Target) -> None:
    """Of more than 100 interrupt operations within a second the rest are answered with quota; later ones are not."""
    with target.session() as peer:
        peer.quiet(1.1)
        begin = time.monotonic()
        answers = peer.ask_all([peer.slot(Op.DISABLE_MSI, count=1) for _ in range(150)])
        took = time.monotonic() - begin
        errors = [answer.error for answer in answers]
        expect(not any(errors[:QUOTA]), f"success of the first {QUOTA}", str(errors[:QUOTA]))
        if took < 1:
            expect(set(errors[QUOTA:]) == {Error.QUOTA}, f"quota for all after {QUOTA}", str(errors[QUOTA:]))
            expect_error(peer.ask(Op.ENABLE_MSI, first=1, count=1), Error.TOO_MANY_VECTORS, what="a check before quota")
        peer.nop()
        peer.quiet(1.1)
        enable(peer)
        fire(target, peer)
        arrives(peer, 1)


@case("IRQ-10", "IRQ-7", needs="trigger")
def case_direct(target: Target) -> None:
    """A direct vector is an eventfd of this session alone, and no counter moves; or it is refused."""
    want = target.want()._replace(mode=VectorMode.DIRECT)
    for _ in range(2):
        try:
            peer = target.meet(want)
        except Refused as refusal:
            expect(refusal.error == Error.ACCESS_DENIED, "access_denied for a direct vector", error_name(refusal.error))
            return
        with peer.connect():
            vector = peer.info.devices[0].runs[0]
            expect(
                (vector.type, vector.mode) == (VectorType.MSI, VectorMode.DIRECT), "a direct MSI vector", str(vector)
            )
            eventfd = peer.fds[vector.fd]
            expect(not select.select([eventfd], [], [], 0)[0], "an eventfd at zero", "a count of another session")
            peer.conf_write(pci.COMMAND, 2, ALL_ON)
            enable(peer)
            for _ in range(3):
                fire(target, peer)
                expect(bool(select.select([eventfd], [], [], DEADLINE)[0]), "a signal on the eventfd", "nothing")
                count = int.from_bytes(os.read(eventfd, 8), "little")
                expect(count == 1, "one interrupt on the eventfd", str(count))
            fire(target, peer)  # left in the eventfd: the next session must not see it


@case("IRQ-10", "MEET-15", needs="msi")
def case_direct_refused_whole(target: Target) -> None:
    """A refusal of a direct vector holds nothing: the device is free for a relayed one."""
    with target.dial() as peer:
        peer.say(hello(target.want()._replace(mode=VectorMode.DIRECT)))
        error = peer.hear().error
        expect(error in (Error.SUCCESS, Error.ACCESS_DENIED), "a session or access_denied", error_name(error))
    target.check_alive()
