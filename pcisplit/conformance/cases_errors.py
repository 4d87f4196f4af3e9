# SPDX-License-Identifier: MIT
"""Cases of ``spec/errors.md`` and ``spec/versioning.md``: what is answered to requests that break the rules."""

import random
from collections.abc import Iterable
from typing import NamedTuple

from pcisplit import pci
from pcisplit.conformance.case import case, expect
from pcisplit.conformance.octets import SEQUENCE, SLOT, U32, USED, expect_all, expect_error, poke, request
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import ALL_ON, Target
from pcisplit.wire import Error, Op, RequestFlag

#: Where the fields of a plain request are, (begin, end).
FIELDS = {
    "region": (10, 11),
    "width": (11, 12),
    "offset": (16, 24),
    "value": (24, 32),
    "length": (32, 36),
    "bulk": (36, 40),
}
#: Operations that 1.0 builds, as the specification lists them.
BUILT = {0, 1, 2, 3, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x40}
#: Those that a posted flag makes silent.
WRITES = {0x22, 0x25}


@case("VER-5", "ERR-2")
def case_unknown_operations(target: Target) -> None:
    """Operations that are planned, and such as nobody knows, are not implemented, whatever else they say."""
    with target.session() as peer:
        numbers = [*(op for op in range(0x61) if op not in BUILT), 0x80, 0xFF, 0x100, 0x120, 0x7FFF, 0xFFDF, 0xFFFF]
        expect_all(peer.ask_all([peer.slot(op) for op in numbers]), Error.NOT_IMPLEMENTED)
        junk = [request(op, id=op, device=d, generation=g, flags=0xFFFF, width=77) for op in numbers for d, g in JUNK]
        slots = [poke(slot, 16, b"\xff" * (SEQUENCE - 16)) for slot in junk]
        expect_all(peer.ask_all(slots), Error.NOT_IMPLEMENTED, "an unknown operation full of junk")


JUNK = ((0, 0), (0xFFFF, U32))


@case("VER-5", "MEET-6")
def case_feature_not_in_force(target: Target) -> None:
    """An operation whose feature the front did not offer is not implemented in its session, whatever else it says."""
    with target.session(target.want()._replace(msi=0), features=0) as peer:
        blocks, packs = (Op.BAR_READ_BLOCK, Op.BAR_WRITE_BLOCK), (Op.BAR_READS, Op.BAR_WRITES)
        for op in (*blocks, *packs, Op.RESET, Op.ENABLE_MSI, Op.DISABLE_MSI):
            expect_error(peer.ask(op), Error.NOT_IMPLEMENTED, what=f"op {op:#x}")
            expect_error(peer.ask(op, device=9, width=3), Error.NOT_IMPLEMENTED, what=f"op {op:#x} with junk")
        posted = peer.ask(Op.BAR_WRITES, flags=RequestFlag.POSTED, width=4, count=1)
        expect_error(posted, Error.NOT_IMPLEMENTED, what="a posted pack without its feature [BAR-11]")
        peer.nop()


@case("VER-4")
def case_xens_numbers(target: Target) -> None:
    """Operations 0 and 1 and the errors -1, -2 and -4 are Xen's."""
    with target.session() as peer:
        expect(peer.ask(0, offset=0, width=4).value & 0xFFFF == peer.info.devices[0].vendor, "ids from op 0", "others")
        expect(peer.ask(1, offset=pci.CACHE_LINE, width=1).error == 0, "success of op 1", "an error")
        for number, asked in (
            (-1, {"op": 0x20, "device": 7}),
            (-2, {"op": 0, "offset": 4096, "width": 4}),
            (-4, {"op": 10}),
        ):
            answer = peer.ask(**asked)
            expect(answer.error == number, f"error {number}", str(answer))


@case("REG-4", "ERR-2")
def case_reserved_octets(target: Target) -> None:
    """Each octet that an operation does not use must be zero, and the request is not executed otherwise."""
    with target.session() as peer:
        for op in BUILT:
            for at in range(10, SEQUENCE):
                if 12 <= at < 16 or any(begin <= at < end for begin, end in USED[op]):
                    continue
                for octet in (0x80, 1):
                    (answer,) = peer.ask_all([poke(request(op, id=at, generation=peer.generations[0]), at, octet)])
                    expect_error(answer, Error.BAD_REQUEST, what=f"op {op:#x} with {octet:#x} in octet {at}")


@case("REG-4", "BAR-10")
def case_flags(target: Target) -> None:
    """No operation has a flag but the posted one, and that is of single and packed writes."""
    with target.session() as peer:
        for op in BUILT:
            for bit in range(16):
                if op not in WRITES or bit:
                    expect_error(peer.ask(op, flags=1 << bit), Error.BAD_REQUEST, what=f"op {op:#x}, flag bit {bit}")


@case("ERR-4", "ERR-2", "THR-2")
def case_no_such_device(target: Target) -> None:
    """A device index that the session does not have is named as that, for every operation, with generation 0."""
    with target.session() as peer:
        for op in BUILT - {Op.BAR_WRITES}:
            for device in (1, 2, 15, 16, 17, 255, 256, 0x7FFF, 0xFFFF):
                answer = expect_error(peer.ask(op, device=device), Error.DEV_NOT_FOUND, what=f"op {op:#x} on {device}")
                expect(answer.generation == 0, "generation 0 of no device", str(answer.generation))


class Rung(NamedTuple):
    """One check of ERR-2: what fails it, what passes it."""

    error: Error
    wrong: dict[str, int]
    right: dict[str, int]


def climb(peer: Peer, op: int, rungs: Iterable[Rung]) -> None:
    """Begin with everything wrong and repair one thing after the other: each time the next check must fail."""
    ladder = list(rungs)
    for at, rung in enumerate(ladder):
        fields: dict[str, int] = {}
        for later in reversed(ladder[at:]):
            fields |= later.wrong
        for done in ladder[:at]:
            fields |= {name: value for name, value in done.right.items() if name not in rung.wrong}
        expect_error(peer.ask(op, **fields), rung.error, what=f"op {op:#x} with {fields}")


def common(peer: Peer) -> list[Rung]:
    """The checks that every operation has."""
    mine = peer.generations[0]
    return [
        Rung(Error.BAD_REQUEST, {"flags": 2}, {"flags": 0}),
        Rung(Error.DEV_NOT_FOUND, {"device": 9}, {"device": 0}),
        Rung(Error.STALE, {"generation": mine + 1 & U32}, {"generation": mine}),
    ]


@case("ERR-2", "CFG-7")
def case_order_of_bar_checks(target: Target) -> None:
    """Of all that is wrong with a BAR access the first check in the list gives the error."""
    with target.session(command=0) as peer:
        bar = peer.info.devices[0].bars[0]
        place = {"region": bar.index}
        rungs = [
            *common(peer),
            Rung(Error.BAD_SIZE, {"width": 3}, {"width": 4}),
            Rung(Error.UNALIGNED, {"offset": bar.size + 1}, {}),
            Rung(Error.INVALID_OFFSET, {"offset": bar.size}, {"offset": 0}),
            Rung(Error.BAD_REQUEST, {"value": 1 << 32}, {"value": 0}),
            Rung(Error.DECODE_DISABLED, place, place),
        ]
        climb(peer, Op.BAR_WRITE, rungs)
        climb(peer, Op.BAR_READ, [rung for rung in rungs if "value" not in rung.wrong])


@case("ERR-2", "BAR-20", "BAR-24")
def case_order_of_block_checks(target: Target) -> None:
    """The length of a block is checked with its width, its place in the bulk area with its range."""
    with target.session(command=0) as peer:
        bar = peer.info.devices[0].bars[0]
        place = {"region": bar.index}
        rungs = [
            *common(peer),
            Rung(Error.BAD_SIZE, {"width": 3}, {"width": 4}),
            Rung(Error.BAD_SIZE, {"length": 6}, {"length": 8}),
            Rung(Error.UNALIGNED, {"offset": bar.size + 1}, {}),
            Rung(Error.INVALID_OFFSET, {"offset": bar.size}, {"offset": 0}),
            Rung(Error.INVALID_OFFSET, {"bulk": 4}, {"bulk": 0}),
            Rung(Error.DECODE_DISABLED, place, place),
        ]
        climb(peer, Op.BAR_READ_BLOCK, rungs)
        climb(peer, Op.BAR_WRITE_BLOCK, rungs)


@case("ERR-2", "CFG-1", "CFG-3")
def case_order_of_config_checks(target: Target) -> None:
    """Of all that is wrong with a configuration write the first check in the list gives the error."""
    with target.session() as peer:
        size = peer.info.devices[0].config_size
        rungs = [
            *common(peer),
            Rung(Error.BAD_SIZE, {"width": 8}, {"width": 4}),
            Rung(Error.UNALIGNED, {"offset": size + 1}, {}),
            Rung(Error.INVALID_OFFSET, {"offset": size}, {"offset": 0}),
            Rung(Error.BAD_REQUEST, {"value": 1 << 32}, {}),
            Rung(Error.DENIED, {"value": 0xDEADBEEF}, {}),
        ]
        climb(peer, Op.CONF_WRITE, rungs)


@case("ERR-2", "IRQ-2", "IRQ-4", needs="msi")
def case_order_of_interrupt_checks(target: Target) -> None:
    """A vector that is not there comes before one that is on already."""
    with target.session() as peer:
        peer.do(Op.ENABLE_MSI, count=1)
        right = {"first": 0, "count": 1}
        rungs = [Rung(Error.TOO_MANY_VECTORS, {"first": 1, "count": 2}, right), Rung(Error.BUSY, right, right)]
        climb(peer, Op.ENABLE_MSI, [*common(peer), *rungs])


@case("ERR-2", "LIFE-21", "LIFE-24", needs="reset")
def case_order_of_reset_checks(target: Target) -> None:
    """Everything else comes before a reset's quota."""
    with target.session() as peer:
        peer.generations[0] = peer.do(Op.RESET).generation
        climb(peer, Op.RESET, [*common(peer), Rung(Error.QUOTA, {}, {})])


@case("ERR-3", needs="memory")
def case_errors_change_nothing(target: Target) -> None:
    """What is answered with an error has changed neither memory nor configuration."""
    with target.session() as peer:
        peer.bar_write(0, 0, 8, 0x1122334455667788)
        good = {"region": 0, "offset": 0, "width": 4, "value": 9}
        wrongs = [
            {"width": 3},
            {"offset": 2},
            {"value": 1 << 32},
            {"flags": 2},
            {"device": 1},
            {"generation": U32},
            {"length": 1},
        ]
        for wrong in wrongs:
            expect(peer.ask(Op.BAR_WRITE, **good | wrong).error < 0, f"an error for {wrong}", "success")
        block = {"region": 0, "width": 8, "length": 16}
        for wrong in ({"offset": 4}, {"bulk": 4}, {"length": 12}, {"value": 1}):
            expect(peer.ask(Op.BAR_WRITE_BLOCK, **block | wrong).error < 0, f"an error for {wrong}", "success")
        value, command = peer.bar_read(0, 0, 8), peer.conf_read(pci.COMMAND, 2)
        expect(value == 0x1122334455667788, "the value from before", f"{value:#x}")
        expect(command == ALL_ON, "COMMAND as before", f"{command:#x}")


@case("ERR-1", "RING-7", "THR-2", "THR-1")
def case_random_requests(target: Target) -> None:
    """Ten thousand random requests: each that is not posted is answered once, with an error of the table or success."""
    rng = random.Random(0)
    values = [0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 64, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20, 1 << 31, U32]
    ops = [op for op in BUILT if op != Op.RESET] * 3 + [0x41, 0x77, 0xFFFF]
    with target.session() as peer:
        for _ in range(100):
            slots = []
            for _ in range(100):
                flags = rng.choice((0, 0, 0, 0, 2, 0x8000))
                slot = peer.slot(rng.choice(ops), flags=flags, id=rng.choice(values))
                for begin, end in FIELDS.values():
                    if rng.random() < 0.4:
                        octets = rng.choice(values).to_bytes(8, "little")[: end - begin]
                        slot = poke(slot, begin, octets)
                slots.append(slot)
            peer.ask_all(slots)
        peer.nop()


@case("ERR-1", "BAR-10", "THR-2")
def case_random_octets(target: Target) -> None:
    """Ten thousand slots of random octets, most of operations that exist."""
    rng = random.Random(1)
    with target.session() as peer:
        for _ in range(100):
            slots = []
            for _ in range(100):
                octets = bytearray(rng.randbytes(SLOT))
                octets[0:2] = rng.choice([*BUILT, 0x41, 0x1234]).to_bytes(2, "little")
                if octets[0] in WRITES:
                    octets[2] &= ~RequestFlag.POSTED  # else nothing answers
                slots.append(bytes(octets))
            peer.ask_all(slots)
        peer.nop()
