# SPDX-License-Identifier: MIT
"""Cases of ``spec/bar.md`` and of the order in ``spec/ordering.md``: accesses, posted writes, blocks.

Those that look at values use 1 MiB of plain memory in BAR 0 of 1af4:10ff; those that only look at errors use any BAR.
"""

from typing import Any

from pcisplit import pci, wire
from pcisplit.conformance.boot import Bar, Bulk
from pcisplit.conformance.case import case, expect
from pcisplit.conformance.octets import U32, U64, USED, Answer, expect_all, expect_error
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import ALL_ON, Target
from pcisplit.wire import BarFlag, Direction, Error, Op, RequestFlag

ACCESSES = (Op.BAR_READ, Op.BAR_WRITE, Op.BAR_READ_BLOCK, Op.BAR_WRITE_BLOCK)
BLOCKS = (Op.BAR_READ_BLOCK, Op.BAR_WRITE_BLOCK)
PATTERN = bytes((7 * at + (at >> 8)) & 0xFF for at in range(wire.BLOCK_MAX))


def first_bar(peer: Peer) -> Bar:
    return peer.info.devices[0].bars[0]


def access(peer: Peer, op: Op, offset: int, width: int, bar: int | None = None, **more: int) -> Answer:
    """The answer to an access of `bar`, or of the device's first."""
    region = first_bar(peer).index if bar is None else bar
    block = {"length": width} if op in BLOCKS and "length" not in more else {}
    return peer.ask(op, region=region, offset=offset, width=width, **block, **more)


def bulk(peer: Peer, way: Direction) -> Bulk:
    return next(area for area in peer.info.bulks if area.index == way)


def put(peer: Peer, at: int, octets: bytes) -> None:
    """Write into bulk-in."""
    area = bulk(peer, Direction.FRONT_TO_BACK)
    peer.maps[area.region][area.offset + at : area.offset + at + len(octets)] = octets


def got(peer: Peer, at: int, length: int) -> bytes:
    """Copy out of bulk-out."""
    area = bulk(peer, Direction.BACK_TO_FRONT)
    return peer.maps[area.region][area.offset + at : area.offset + at + length]


@case("BAR-1", "THR-2", "ERR-2")
def case_bar_width(target: Target) -> None:
    """Only 1, 2, 4 and 8 octets are a width."""
    with target.session() as peer:
        for op in ACCESSES:
            for width in (0, 3, 5, 6, 7, 9, 16, 64, 128, 255):
                expect_error(access(peer, op, 0, width), Error.BAD_SIZE, what=f"op {op:#x} of {width} octets")


@case("BAR-1", "THR-2")
def case_bar_alignment(target: Target) -> None:
    """An offset is a multiple of the width."""
    with target.session() as peer:
        for op in ACCESSES:
            for offset, width in ((1, 2), (1, 4), (2, 4), (7, 2), (U64, 2), (U64 - 1, 4), (U64 - 4, 2)):
                expect_error(
                    access(peer, op, offset, width), Error.UNALIGNED, what=f"op {op:#x} at {offset:#x}/{width}"
                )


@case("BAR-1", "THR-2")
def case_bar_range(target: Target) -> None:
    """Nothing lies behind the end of a BAR, however large the offset."""
    with target.session() as peer:
        for bar in peer.info.devices[0].bars:
            for op in ACCESSES:
                for offset in (bar.size, bar.size + 4096, 1 << 32, 1 << 63, U64 - 3, U64 - 7):
                    answer = access(peer, op, offset, 4, bar.index)
                    expect_error(answer, Error.INVALID_OFFSET, what=f"op {op:#x} at {offset:#x} of BAR {bar.index}")


@case("BAR-2", "THR-2")
def case_bar_absent(target: Target) -> None:
    """A BAR that is not there has no offset."""
    with target.session() as peer:
        present = {bar.index for bar in peer.info.devices[0].bars}
        for index in (*(n for n in range(wire.BAR_COUNT) if n not in present), 6, 7, 64, 128, 255):
            for op in ACCESSES:
                expect_error(access(peer, op, 0, 4, index), Error.INVALID_OFFSET, what=f"op {op:#x} on BAR {index}")


@case("BAR-6")
def case_bar_wide_value(target: Target) -> None:
    """A value wider than the access is refused."""
    with target.session() as peer:
        for width in (1, 2, 4):
            for value in (1 << 8 * width, U64):
                answer = access(peer, Op.BAR_WRITE, 0, width, value=value)
                expect_error(answer, Error.BAD_REQUEST, what=f"{value:#x} in {width} octets")


@case("BAR-3", "ORD-4", needs="memory")
def case_bar_memory(target: Target) -> None:
    """Memory written at one width reads the same at every other, up to the last octet of the BAR."""
    with target.session() as peer:
        for base in (0, first_bar(peer).size - 8):
            peer.bar_write(0, base, 8, 0x8877665544332211)
            peer.bar_write(0, base + 2, 2, 0xBBAA)
            peer.bar_write(0, base + 7, 1, 0xFF)
            wanted = bytes.fromhex("1122aabb556677ff")
            for width in (1, 2, 4, 8):
                octets = b"".join(
                    peer.bar_read(0, base + at, width).to_bytes(width, "little") for at in range(0, 8, width)
                )
                expect(octets == wanted, f"{wanted.hex()} by {width}", octets.hex())


@case("BAR-3", needs="edu")
def case_bar_exact_width(target: Target) -> None:
    """An access keeps its width: edu answers below 0x80 to 4 octets only, and with all ones to any other width."""
    with target.session() as peer:
        expect(peer.bar_read(0, 0, 4) == 0x010000ED, "edu's identification", f"{peer.bar_read(0, 0, 4):#x}")
        for width in (1, 2):
            value = peer.bar_read(0, 0, width)
            expect(value == (1 << 8 * width) - 1, f"all ones for {width} octets", f"{value:#x}")
        peer.bar_write(0, 4, 4, 0x12345678)
        expect(peer.bar_read(0, 4, 4) == 0x12345678 ^ U32, "the value inverted", f"{peer.bar_read(0, 4, 4):#x}")


@case("BAR-4", needs="io")
def case_bar_io_width(target: Target) -> None:
    """I/O space has no access of 8 octets."""
    with target.session() as peer:
        bar = next(bar for bar in peer.info.devices[0].bars if bar.flags & BarFlag.IO)
        expect_error(access(peer, Op.BAR_READ, 0, 8, bar.index), Error.BAD_SIZE)


MSIX_RULE = 13


@case("BAR-5", needs="msix")
def case_bar_msix_table(target: Target) -> None:
    """The MSI-X table and the pending-bit array are denied."""
    with target.session() as peer:
        slots = [peer.slot(Op.CONF_READ, offset=at, width=1) for at in range(256)]
        space = bytes(answer.value for answer in peer.ask_all(slots))
        at = pci.find_capability(space, pci.CAP_MSIX) or 0
        for place in (
            int.from_bytes(space[at + 4 : at + 8], "little"),
            int.from_bytes(space[at + 8 : at + 12], "little"),
        ):
            for op in ACCESSES:
                what = f"op {op:#x} on {place:#x}"
                answer = expect_error(access(peer, op, place & ~7, 4, place & 7), Error.DENIED, what=what)
                expect(answer.rule == MSIX_RULE, f"rule {MSIX_RULE}", f"{answer.rule}")


@case("BAR-10", "ORD-1", "ORD-6", needs="memory")
def case_posted(target: Target) -> None:
    """A posted write has no answer, and has happened when a later read is answered."""
    with target.session() as peer:
        for value in range(1, 200):
            write = peer.slot(Op.BAR_WRITE, region=0, offset=64, width=4, value=value, flags=RequestFlag.POSTED)
            peer.publish(write)
            expect(peer.bar_read(0, 64, 4) == value, f"{value} after its posted write", "another value")
        expect(peer.device("posted_errors") == 0, "no posted error", str(peer.device("posted_errors")))


@case("BAR-10", "ORD-5", "RING-6", needs="memory")
def case_posted_stream(target: Target) -> None:
    """Thousands of posted writes with no response among them: they need no response slots, and none is lost."""
    with target.session() as peer:
        slots = [
            peer.slot(Op.BAR_WRITE, region=0, offset=4 * (n % 1024), width=4, value=n, flags=RequestFlag.POSTED)
            for n in range(4096)
        ]
        for start in range(0, len(slots), 128):
            peer.publish(*slots[start : start + 128])
            peer.wait(lambda: peer.back("req_cons") == peer.req_prod, "posted writes taken")
        for at in range(1024):
            value = peer.bar_read(0, 4 * at, 4)
            expect(value == 3072 + at, f"{3072 + at} at {4 * at:#x}", str(value))


@case("BAR-10")
def case_posted_flag_elsewhere(target: Target) -> None:
    """The posted flag on any other operation is refused, with an answer."""
    with target.session() as peer:
        for op in USED:
            if op not in (Op.BAR_WRITE, Op.BAR_WRITES):
                expect_error(peer.ask(op, flags=RequestFlag.POSTED), Error.BAD_REQUEST, what=f"op {op:#x} posted")


@case("BAR-11", "BAR-10", "ORD-7")
def case_posted_errors(target: Target) -> None:
    """The error of a posted write is in the device state when the next response is, and nothing is answered for it."""
    with target.session() as peer:
        bar, mine = first_bar(peer), peer.generations[0]
        wrongs: list[tuple[Error, dict[str, Any]]] = [
            (Error.BAD_SIZE, {"width": 3}),
            (Error.UNALIGNED, {"width": 4, "offset": 2}),
            (Error.INVALID_OFFSET, {"width": 4, "offset": bar.size}),
            (Error.BAD_REQUEST, {"width": 1, "value": 256}),
            (Error.BAD_REQUEST, {"width": 4, "flags": RequestFlag.POSTED | 0x8000}),
            (Error.BAD_REQUEST, {"width": 4, "length": 1}),
            (Error.STALE, {"width": 4, "generation": mine + 1}),
        ]
        for number, (error, fields) in enumerate(wrongs * 3, 1):
            peer.publish(peer.slot(Op.BAR_WRITE, **{"region": bar.index, "flags": RequestFlag.POSTED} | fields))
            peer.nop()
            count, last = peer.device("posted_errors"), peer.device("posted_error")
            expect((count, last) == (number, error), f"posted error {number}, {error.name}", f"{count}, {last}")
            where = tuple(peer.device(name) for name in ("posted_rule", "posted_region", "posted_offset"))
            wanted = (0, bar.index, fields.get("offset", 0))
            expect(where == wanted, f"rule, BAR and offset {wanted} of the last", str(where))
        expect(peer.device("refused") == number, f"{number} refused", str(peer.device("refused")))


@case("BAR-11", "BAR-10")
def case_posted_to_nobody(target: Target) -> None:
    """The error of a posted write to a device that is not there is counted in the back header."""
    with target.session() as peer:
        before = peer.back("refused")
        for device in (1, 2, 255, 0xFFFF):
            peer.publish(peer.slot(Op.BAR_WRITE, device=device, width=4, flags=RequestFlag.POSTED))
        peer.nop()
        expect(peer.back("refused") == before + 4, f"{before + 4} refused", str(peer.back("refused")))
        expect(peer.device("posted_errors") == 0, "no posted error of the device", str(peer.device("posted_errors")))


@case("ORD-1", "ORD-3", "ORD-4", needs="memory")
def case_order(target: Target) -> None:
    """Writes and reads of all kinds, published at once, execute in ring order and are answered in it."""
    with target.session() as peer:
        slots = []
        for value in range(1, 65):
            place = {"region": 0, "offset": 128, "width": 4}
            slots.append(peer.slot(Op.BAR_WRITE, **place, value=value))
            slots.append(peer.slot(Op.CONF_WRITE, offset=pci.CACHE_LINE, width=1, value=value))
            slots.append(peer.slot(Op.BAR_READ, **place))
            slots.append(peer.slot(Op.CONF_READ, offset=pci.CACHE_LINE, width=1))
        answers = peer.ask_all(slots)
        expect_all(answers, Error.SUCCESS)
        values = [answer.value for answer in answers if answer.op in (Op.BAR_READ, Op.CONF_READ)]
        expect(values == [n for n in range(1, 65) for _ in range(2)], "each read after its write", str(values))


@case("BAR-24", "ORD-8")
def case_block_without_decode(target: Target) -> None:
    """A block needs decode before its first access."""
    with target.session(command=0) as peer:
        for op in BLOCKS:
            answer = expect_error(access(peer, op, 0, 4, length=8), Error.DECODE_DISABLED)
            expect(answer.length == 0, "0 octets moved", str(answer.length))


@case("ORD-8")
def case_write_makes_legal(target: Target) -> None:
    """A write of MEM takes effect before the access behind it starts, and so does its removal."""
    with target.session(command=0) as peer:
        on = {"offset": pci.COMMAND, "width": 2, "value": ALL_ON}
        bar = first_bar(peer).index
        read = {"region": bar, "width": 4}
        turn = [(Op.CONF_WRITE, on), (Op.BAR_READ, read), (Op.CONF_WRITE, on | {"value": 0}), (Op.BAR_READ, read)]
        answers = peer.ask_all([peer.slot(op, **fields) for op, fields in turn * 32])
        wanted = [Error.SUCCESS, Error.SUCCESS, Error.SUCCESS, Error.DECODE_DISABLED] * 32
        came = [answer.error for answer in answers]
        expect(came == wanted, "each access legal just after its write", str(came))


@case("BAR-20", "BAR-21", "BAR-22", needs="memory")
def case_block(target: Target) -> None:
    """Blocks of every width carry octets there and back, from any place of the bulk areas."""
    with target.session() as peer:
        size = bulk(peer, Direction.FRONT_TO_BACK).size
        for width in (1, 2, 4, 8):
            for length, place in (
                (width, 0),
                (4096, 0),
                (24, 8),
                (4096, size - 4096),
                (8, size - 8),
                (width, size - 8),
            ):
                octets = PATTERN[width : width + length] if length < 4096 else PATTERN
                put(peer, place, octets)
                fields = {"region": 0, "width": width, "offset": 0x1000, "length": length, "bulk": place}
                moved = peer.do(Op.BAR_WRITE_BLOCK, **fields).length
                back = peer.do(Op.BAR_READ_BLOCK, **fields).length
                expect((moved, back) == (length, length), f"{length} octets moved", f"{moved}, {back}")
                came = got(peer, place, length)
                expect(came == octets, f"the {length} octets written by {width}", f"others, from {came[:8].hex()}")


@case("BAR-21", needs="memory")
def case_block_alone(target: Target) -> None:
    """A block touches its own octets and no others, of the BAR and of bulk-out."""
    with target.session() as peer:
        before = {"region": 0, "width": 8, "offset": 0x2000, "length": 256, "bulk": 0}
        put(peer, 0, b"\xee" * 256)
        peer.do(Op.BAR_WRITE_BLOCK, **before)
        put(peer, 0, PATTERN[:16])
        peer.do(Op.BAR_WRITE_BLOCK, **(before | {"width": 4, "offset": 0x2040, "length": 16}))
        peer.do(Op.BAR_READ_BLOCK, **before | {"bulk": 512})
        wanted = b"\xee" * 64 + PATTERN[:16] + b"\xee" * 176
        expect(got(peer, 512, 256) == wanted, "16 octets changed", got(peer, 512, 256).hex())
        outside = got(peer, 256, 256) + got(peer, 768, 256)
        expect(not any(outside), "bulk-out untouched beside the block", "octets there")


@case("BAR-20", "THR-2")
def case_block_length(target: Target) -> None:
    """A block's length is a multiple of its width, not 0, and at most 4096."""
    with target.session() as peer:
        for op in BLOCKS:
            for width, length in ((1, 0), (4, 0), (4, 2), (8, 12), (2, 4095), (1, 4097), (4, 8192), (4, 0xFFFFFFFC)):
                answer = access(peer, op, 0, width, length=length)
                expect_error(answer, Error.BAD_SIZE, what=f"op {op:#x} of {length} octets by {width}")
                expect(answer.length == 0, "0 octets moved", str(answer.length))


@case("BAR-20", "THR-2")
def case_block_bulk(target: Target) -> None:
    """A block lies within the bulk area, at a multiple of 8."""
    with target.session() as peer:
        for op, way in zip(BLOCKS, (Direction.BACK_TO_FRONT, Direction.FRONT_TO_BACK), strict=True):
            size = bulk(peer, way).size
            for place in (1, 4, 7, 12, size - 8, size, size + 8, 0x7FFFFFF8, 0x80000000, 0xFFFFFFF8, U32):
                answer = access(peer, op, 0, 4, length=16, bulk=place)
                expect_error(answer, Error.INVALID_OFFSET, what=f"op {op:#x} of 16 octets at bulk {place:#x}")


@case("BAR-1", "BAR-20", "THR-2")
def case_block_range(target: Target) -> None:
    """A block ends inside the BAR, and moves nothing if it does not."""
    with target.session() as peer:
        bar = first_bar(peer)
        for op in BLOCKS:
            for offset, length in (
                (bar.size - 4, 8),
                (bar.size - 8, 4096),
                (bar.size, 4),
                (U64 - 3, 4),
                (U64 - 4095, 4096),
            ):
                answer = access(peer, op, offset, 4, length=length)
                expect_error(answer, Error.INVALID_OFFSET, what=f"op {op:#x}, {length} octets at {offset:#x}")
                expect(answer.length == 0, "0 octets moved", str(answer.length))


@case("BAR-22", "ORD-1", needs="memory")
def case_blocks_in_flight(target: Target) -> None:
    """Sixteen blocks each way in flight, each with its own place in the bulk areas."""
    with target.session() as peer:
        fields = [{"region": 0, "width": 8, "length": 4096, "bulk": 4096 * n, "offset": 4096 * n} for n in range(16)]
        for n in range(16):
            put(peer, 4096 * n, bytes([n + 1]) * 4096)
        slots = [peer.slot(op, **f) for op in (Op.BAR_WRITE_BLOCK, Op.BAR_READ_BLOCK) for f in fields]
        expect_all(peer.ask_all(slots), Error.SUCCESS)
        for n in range(16):
            expect(got(peer, 4096 * n, 4096) == bytes([n + 1]) * 4096, f"block {n} back", "other octets")
