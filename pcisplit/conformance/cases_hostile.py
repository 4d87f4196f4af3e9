# SPDX-License-Identifier: MIT
"""Cases of ``spec/threat-model.md``: a front that lies, floods, hangs and rewrites harms its own session alone.

Where the target has a second device a *witness*, an honest session on it, is served before and after [THR-3].
"""

import contextlib
import fcntl
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator

from pcisplit.conformance.case import DEADLINE, Violation, case, expect
from pcisplit.conformance.meeting import hello
from pcisplit.conformance.octets import FRONT, FRONT_SIZE, Answer, expect_all, gaps
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import Target
from pcisplit.conformance.watch import until
from pcisplit.wire import Direction, Error, Op, RegionIndex, RequestFlag, RingIndex, State

POSTED_ERROR = {"width": 3, "flags": RequestFlag.POSTED}


@contextlib.contextmanager
def witness(target: Target) -> Iterator[None]:
    """An honest session on another device, which must be served before and after [THR-3]."""
    others = target.others()
    if not others:
        yield
        return
    with target.session(target.want(others[0]), command=0) as peer:
        peer.nop()
        yield
        peer.nop()


def ending(peer: Peer) -> bool:
    return peer.back("state") in (State.CLOSING, State.CLOSED)


@case("RING-3", "LIFE-5", "THR-3", "THR-2")
def case_overrun(target: Target) -> None:
    """A prod further ahead than the ring is long, or of slots that are not there, ends the session with ring_overrun."""
    with witness(target):
        for ahead in (1, 2, 255, 256, 257, 1000, 0x7FFFFFFF):
            with target.session(command=0) as peer:
                peer.nop()
                peer.store("req_prod", peer.req_prod + ahead)
                peer.kick()
                peer.ended(Error.RING_OVERRUN, by=f"an index {ahead} ahead")


@case("RING-3", "THR-2")
def case_index_behind(target: Target) -> None:
    """An index behind what was taken announces nothing, and is no error."""
    with target.session(command=0) as peer:
        peer.nop()
        for behind in (1, 255, 256, 257, 0x40000000):
            peer.store("req_prod", peer.req_prod - behind)
            peer.kick()
            peer.quiet(0.02)
        peer.store("req_prod", peer.req_prod)
        peer.nop()


@case("RING-3")
def case_full_is_no_overrun(target: Target) -> None:
    """An index exactly as far ahead as the ring is long is a full ring."""
    with target.session(command=0) as peer:
        expect_all(peer.ask_all([peer.slot(Op.NOP) for _ in range(peer.ring(RingIndex.REQUEST).slots)]), Error.SUCCESS)


@case("RING-3", "LIFE-5", "THR-3")
def case_impossible_rsp_cons(target: Target) -> None:
    """A front that takes responses never published, or gives some back, is cut off when the back looks for room."""
    with witness(target):
        for lie in (1000, 0x80000000, -300):  # -300: behind what the back has seen to publish the 768th
            with target.session(command=0) as peer:
                for _ in range(3):
                    peer.ask_all([peer.slot(Op.NOP) for _ in range(256)])
                peer.store("rsp_cons", peer.rsp_cons + lie)
                fill(peer, [peer.slot(Op.NOP) for _ in range(256)])
                peer.ended(Error.RING_OVERRUN, by=f"rsp_cons {lie} ahead of the truth")


@case("RING-3", "LIFE-5", "THR-3")
def case_impossible_evt_cons(target: Target) -> None:
    """The same for events."""
    with witness(target):
        for lie in (1000, 0x80000000, -80):
            with target.session(command=0) as peer:
                for _ in range(100):
                    peer.publish(peer.slot(Op.BAR_WRITE, **POSTED_ERROR))
                    peer.nop()
                    peer.hints()
                peer.store("evt_cons", peer.evt_cons + lie)
                fill(peer, [peer.slot(Op.BAR_WRITE, **POSTED_ERROR) for _ in range(128)])
                peer.ended(Error.RING_OVERRUN, by=f"evt_cons {lie} ahead of the truth")


def fill(peer: Peer, slots: list[bytes]) -> None:
    """Publish `slots` twice, without taking a response: so many that the back must look for room."""
    for _ in range(2):
        peer.publish(*slots)
        until(lambda: ending(peer) or peer.back("req_cons") == peer.req_prod, "the requests taken, or an end")


@case("THR-1", "RING-7", "ERR-1")
def case_rewritten_slots(target: Target) -> None:
    """Slots rewritten while the back reads them: each answer is to what the back copied, and the session lives."""
    with target.session() as peer:
        for turn in range(200):
            first = [peer.slot(Op.NOP, id=n) for n in range(256)]
            other = [peer.slot(0x77, id=n) for n in range(256)]
            begin = peer.req_prod
            peer.publish(*first)
            for _ in range(turn % 8):
                for slots in (other, first):
                    for number, slot in enumerate(slots, begin):
                        peer.write(number, slot)
            for number, answer in enumerate(peer.take(256)):
                expect(answer.id == number and _one_of_both(answer), "an answer to one of two slots", str(answer))


def _one_of_both(answer: Answer) -> bool:
    """To the nop, or to the unknown operation: they differ in one word."""
    legal = {Op.NOP: (Error.SUCCESS,), 0x77: (Error.NOT_IMPLEMENTED,)}
    return answer.error in legal.get(answer.op, ())


@case("RING-14")
def case_lies_awake(target: Target) -> None:
    """A front that says it never sleeps is never waited for, and finds its answers by looking."""
    with target.session() as peer:
        peer.lie(0)
        for size in (1, 7, 256) * 20:
            expect_all(peer.ask_all([peer.slot(Op.NOP) for _ in range(size)]), Error.SUCCESS)


@case("RING-14", "RING-23", "THR-4", "THR-3")
def case_doorbell_left_full(target: Target) -> None:
    """A front that says it always sleeps and never empties its doorbell, made blocking, is served on."""
    with witness(target), target.session() as peer:
        for bell in Direction:
            flags = fcntl.fcntl(peer.fd(bell), fcntl.F_GETFL)
            fcntl.fcntl(peer.fd(bell), fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        peer.lie(0xFFFFFFFF)
        for _ in range(2000):  # some hundred kicks fill a socket
            peer.nop()
        expect(peer.back("kicks") > 0, "kicks counted", str(peer.back("kicks")))


@case("REG-6", "THR-3")
def case_hole_before_initialised(target: Target) -> None:
    """Holes punched into f2b before the front is Initialised, the header but for its state among them, harm nobody."""
    with witness(target), target.meet() as peer:
        f2b = peer.maps[RegionIndex.F2B]
        f2b.madvise(mmap.MADV_REMOVE, 0, len(f2b))
        peer.connect()
        expect_all(peer.ask_all([peer.slot(Op.NOP)], timeout=1), Error.SUCCESS, "a nop in a region that had holes")
        peer.part()


@case("REG-3", "REG-6", "RING-7", "THR-3")
def case_hole_in_f2b(target: Target) -> None:
    """No hole can be punched into f2b, nothing written by a system call, no mapping made, once the back is Connected."""
    with witness(target), target.session() as peer:
        f2b = peer.maps[RegionIndex.F2B]
        fd = next(peer.fds[region.fd] for region in peer.info.regions if region.index == RegionIndex.F2B)
        attempts: dict[str, Callable[[], object]] = {
            "punching a hole": lambda: f2b.madvise(mmap.MADV_REMOVE, mmap.PAGESIZE, mmap.PAGESIZE),
            "a write": lambda: os.pwrite(fd, b"x", mmap.PAGESIZE),
            "a mapping": lambda: mmap.mmap(fd, mmap.PAGESIZE),
            "a change of size": lambda: os.ftruncate(fd, 0),
        }
        for what, attempt in attempts.items():
            try:
                attempt()
            except OSError:
                continue
            raise Violation("a refusal of the kernel", f"{what} of f2b when Connected")
        expect_all(peer.ask_all([peer.slot(Op.NOP)], timeout=1), Error.SUCCESS, "a nop after it")
        peer.part()


@case("RING-22", "THR-3")
def case_kick_flood(target: Target) -> None:
    """Kicks without work cost the back little, and a request among them is still found."""
    with witness(target), target.session() as peer:
        before, begin, kicks = peer.back("empty_kicks"), time.monotonic(), 0
        while kicks < 10_000 or time.monotonic() < begin + 0.3:
            peer.kick()
            kicks += 1
        pauses = 2 + int((time.monotonic() - begin) * 1000).bit_length()
        woken = peer.back("empty_kicks") - before
        expect(woken <= 16 * pauses, f"at most {16 * pauses} of {kicks} kicks seen by the back", str(woken))
        expect_all(peer.ask_all([peer.slot(Op.NOP)], timeout=1), Error.SUCCESS, "a nop after a flood of kicks")
        for _ in range(100):
            peer.kick()
        peer.part()


@case("RING-22")
def case_no_pause_for_work(target: Target) -> None:
    """Kicks with work behind them bring no pause, nor does a flood once there was work again."""
    with target.session() as peer:
        for _ in range(2):
            begin = time.monotonic()
            for _ in range(100):
                peer.nop()
            took = time.monotonic() - begin
            expect(took < 5, "100 nops without pauses of up to 100 ms", f"{took:.1f} s for them")
            while time.monotonic() < begin + took + 0.3:
                peer.kick()
            peer.nop()


@case("THR-1", "REG-4")
def case_header_garbage(target: Target) -> None:
    """What the front writes where nothing is defined has no effect."""
    rng = random.Random(2)
    with target.session() as peer:
        f2b = peer.maps[RegionIndex.F2B]
        for _ in range(50):
            for begin, end in [(0, 4), (8, 20), *gaps(FRONT, FRONT_SIZE)]:  # magic, features, epoch too
                f2b[begin:end] = rng.randbytes(end - begin)
            peer.nop()


@case("RING-14", "RING-20", "THR-3", "THR-4")
def case_eventfd_filled(target: Target) -> None:
    """A front that fills its own doorbell cannot ring any more: its loss, and nobody else's."""
    with witness(target), target.session() as peer:
        bell = peer.fd(Direction.FRONT_TO_BACK)
        count = int.from_bytes(os.read(bell, 8), "little")  # all kicks so far, given back with the rest
        expect(count == peer.kicks, f"{peer.kicks} kicks", str(count))
        os.write(bell, (0xFFFFFFFFFFFFFFFE).to_bytes(8, "little"))
    target.check_alive()


@case("THR-3", "RING-6")
def case_front_hangs(target: Target) -> None:
    """A front that stops with full rings keeps nobody from being served."""
    with target.session() as peer:
        for _ in range(2):
            peer.publish(*(peer.slot(Op.NOP) for _ in range(256)))
            until(lambda: peer.count_answers() == 256, "a full response ring")
        with witness(target):
            peer.quiet(0.1)
        expect_all(peer.take(512), Error.SUCCESS)


@case("MEET-13", "THR-3")
def case_odd_messages(target: Target) -> None:
    """An empty message, a large one and many of them end the session of who sends them."""
    with witness(target):
        for messages in ([b""], [bytes(100_000)], [b"x"] * 50):
            with target.session() as peer:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for octets in messages:
                        peer.say(octets)
                expect(peer.hung_up(DEADLINE), "the end of the session", "nothing")


@case("THR-3", "MEET-15", "LIFE-13")
def case_hello_flood(target: Target) -> None:
    """Hundreds of hellos, good and bad, from fronts that do not wait for the answer."""
    rng = random.Random(3)
    good = hello(target.want())
    with witness(target):
        for turn in range(300):
            octets = good if turn % 3 else rng.randbytes(rng.randrange(1, 4096))
            with contextlib.suppress(OSError), target.dial() as peer:
                peer.say(octets)
    target.check_alive()


@case("BAR-22", "THR-1", "THR-3", needs="memory")
def case_bulk_rewritten(target: Target) -> None:
    """Bulk-in rewritten while blocks are written from it: what arrives is what was there at some time."""
    with target.session() as peer:
        area = next(bulk for bulk in peer.info.bulks if bulk.index == Direction.FRONT_TO_BACK)
        f2b, fields = peer.maps[RegionIndex.F2B], {"region": 0, "width": 8, "length": 4096}
        f2b[area.offset : area.offset + 4096] = b"\x11" * 4096
        for _ in range(50):
            peer.publish(*(peer.slot(Op.BAR_WRITE_BLOCK, **fields) for _ in range(8)))
            for octet in (0x22, 0x11) * 4:
                f2b[area.offset : area.offset + 4096] = bytes([octet]) * 4096
            expect_all(peer.take(8), Error.SUCCESS)
            octets = {peer.bar_read(0, at, 1) for at in range(0, 4096, 512)}
            expect(octets <= {0x11, 0x22}, "octets of either pattern", str(octets))
