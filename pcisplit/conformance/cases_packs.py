# SPDX-License-Identifier: MIT
"""Cases of packs in ``spec/bar.md``: several accesses in one slot."""

from collections.abc import Iterable
from typing import Any

from pcisplit import wire
from pcisplit.conformance.case import case, expect
from pcisplit.conformance.octets import expect_error, pack, pack_writes
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import Target
from pcisplit.wire import Error, Op, RequestFlag

POSTED = {"flags": int(RequestFlag.POSTED), "id": 0}


def write_pack(peer: Peer, pairs: Iterable[tuple[int, int]], width: int = 4, **fields: Any) -> None:
    """Publish a pack of writes to BAR 0, and wait until it was made."""
    numbers = {"region": 0, "width": width} | pack_writes(pairs) | POSTED | fields
    peer.publish(peer.slot(Op.BAR_WRITES, **numbers))
    peer.nop()


@case("BAR-40", "BAR-41", "BAR-43", needs="memory")
def case_pack_of_reads(target: Target) -> None:
    """One to ten reads of each width, in any order and of one place twice, each with its own value."""
    with target.session() as peer:
        octets = [(37 * at + 11) & 0xFF for at in range(64)]
        for at, octet in enumerate(octets):
            peer.bar_write(0, at, 1, octet)
        for width in (1, 2, 4):
            for count in range(1, wire.PACK_READS + 1):
                places = [width * (7 * n % (64 // width)) for n in range(count)]
                answer = peer.do(Op.BAR_READS, region=0, width=width, **pack(places))
                wanted = tuple(int.from_bytes(bytes(octets[at : at + width]), "little") for at in places)
                expect(answer.values == wanted, f"{wanted} of {places}", str(answer.values))


@case("BAR-40", "BAR-42", "ORD-5", needs="memory")
def case_pack_of_writes(target: Target) -> None:
    """Writes to one place take effect in order, each as wide as asked, and nothing is answered."""
    with target.session() as peer:
        write_pack(peer, [(0, 0x11111111), (4, 5), (0, 0x22222222), (8, 6), (0, 0x33333333)])
        values = [peer.bar_read(0, at, 4) for at in (0, 4, 8)]
        expect(values == [0x33333333, 5, 6], "the last value of each", str([hex(value) for value in values]))
        write_pack(peer, [(0, 0xAA), (2, 0xBB)], width=1)
        value = peer.bar_read(0, 0, 4)
        expect(value == 0x33BB33AA, "single octets changed: 0x33bb33aa", f"{value:#x}")
        expect(peer.device("posted_errors") == 0, "no error", str(peer.device("posted_errors")))


@case("BAR-43", "ERR-2", needs="memory")
def case_pack_of_reads_stops(target: Target) -> None:
    """The first read that fails ends the pack: its error, and the values before it."""
    with target.session() as peer:
        peer.bar_write(0, 0, 4, 7)
        size = next(bar.size for bar in peer.info.devices[0].bars if bar.index == 0)
        for wrong, error in ((2, Error.UNALIGNED), (size, Error.INVALID_OFFSET), (0xFFFFFFFC, Error.INVALID_OFFSET)):
            for at in range(4):
                places = [0] * at + [wrong] + [0] * 2
                answer = peer.ask(Op.BAR_READS, region=0, width=4, **pack(places))
                expect_error(answer, error, what=f"a pack of reads at {places}")
                expect(answer.values == (7,) * at, f"{at} values before the error", str(answer.values))


@case("BAR-42", "BAR-11", needs="memory")
def case_pack_of_writes_goes_on(target: Target) -> None:
    """A write that fails is counted, with its place, and those after it are made."""
    with target.session() as peer:
        write_pack(peer, [(0, 1), (2, 2), (4, 3), (9, 4), (12, 5)])
        values = [peer.bar_read(0, at, 4) for at in (0, 4, 12)]
        expect(values == [1, 3, 5], "the writes that are right made", str(values))
        count, place, error = (peer.device(name) for name in ("posted_errors", "posted_offset", "posted_error"))
        expect(
            (count, place, error) == (2, 9, Error.UNALIGNED), "2 errors, the last unaligned at 9", f"{count} {place}"
        )
        write_pack(peer, [(16, 1), (20, 1 << 16)], width=2)
        expect(peer.device("posted_error") == Error.BAD_REQUEST, "a value too wide told", "another error")
        expect(peer.bar_read(0, 16, 2) == 1, "the write before it made", "not")


@case("BAR-41", "BAR-42", "ERR-2")
def case_pack_shape(target: Target) -> None:
    """Wrong counts and widths are bad_size; a pack of writes without its flag, or with an id, is a bad request."""
    with target.session() as peer:
        bar = peer.info.devices[0].bars[0].index
        for count in (0, 11, 255, 1 << 31, 0xFFFFFFFF):
            answer = peer.ask(Op.BAR_READS, region=bar, width=4, **pack([0], count))
            expect_error(answer, Error.BAD_SIZE, what=f"a pack of {count} reads")
        for width in (0, 3, 8, 255):
            expect_error(
                peer.ask(Op.BAR_READS, region=bar, width=width, **pack([0])), Error.BAD_SIZE, what=f"width {width}"
            )
        answer = peer.ask(Op.BAR_WRITES, region=bar, width=4, **pack_writes([(0, 0)]) | {"id": 0})
        expect_error(answer, Error.BAD_REQUEST, what="a pack of writes that is not posted")
        before = peer.device("posted_errors")
        wrongs = ({"count": 0}, {"count": 6}, {"width": 8}, {"id": 5})
        for number, wrong in enumerate(wrongs, 1):
            fields = {"region": bar, "width": 4} | pack_writes([(0, 0)]) | POSTED | wrong
            peer.publish(peer.slot(Op.BAR_WRITES, **fields))
            peer.nop()
            count = peer.device("posted_errors") - before
            expect(count == number, f"{number} posted errors after {wrong}", str(count))


@case("BAR-41", "CFG-7")
def case_pack_without_decode(target: Target) -> None:
    """Decode, generation and device are checked once, before the first element."""
    with target.session(command=0) as peer:
        bar, mine = peer.info.devices[0].bars[0].index, peer.generations[0]
        good = {"region": bar, "width": 4} | pack([0, 0])
        expect_error(peer.ask(Op.BAR_READS, **good), Error.DECODE_DISABLED)
        expect_error(peer.ask(Op.BAR_READS, **good | {"generation": mine + 1}), Error.STALE)
        expect_error(peer.ask(Op.BAR_READS, **good | {"device": 9}), Error.DEV_NOT_FOUND)
        expect_error(peer.ask(Op.BAR_READS, **good | {"region": 7}), Error.INVALID_OFFSET)


@case("BAR-40", "BAR-42", "BAR-43", needs="edu")
def case_pack_of_registers(target: Target) -> None:
    """A pack of a device's registers, whatever the way to them: in order, with single accesses around it."""
    with target.session() as peer:
        for seed in (0x1234, 0xDEADBEEF):
            write_pack(peer, [(4, 0), (4, seed)])
            answer = peer.do(Op.BAR_READS, region=0, width=4, **pack([4, 0, 4]))
            ident = peer.bar_read(0, 0, 4)
            wanted = (~seed & 0xFFFFFFFF, ident, ~seed & 0xFFFFFFFF)
            expect(answer.values == wanted, f"liveness, identity, liveness {wanted}", str(answer.values))
        before = peer.device("posted_errors")
        write_pack(peer, [(4, 1), (6, 2), (4, 3)])
        expect(peer.device("posted_errors") == before + 1, "one error", str(peer.device("posted_errors")))
        expect(peer.bar_read(0, 4, 4) == ~3 & 0xFFFFFFFF, "the last write made", "not")
        answer = peer.ask(Op.BAR_READS, region=0, width=4, **pack([4, 6, 4]))
        expect_error(answer, Error.UNALIGNED)
        expect(len(answer.values) == 1, "one value before the error", str(answer.values))
