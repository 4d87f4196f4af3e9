# SPDX-License-Identifier: MIT
"""Cases of ``spec/config.md``: the virtual configuration space."""

from pcisplit import pci
from pcisplit.conformance.case import case, expect
from pcisplit.conformance.octets import U64, Answer, expect_error
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import ALL_ON, MEM, Target
from pcisplit.wire import BarFlag, Error, Op

CACHE_LINE_RULE, LATENCY_RULE = 4, 5
BARS = range(pci.BAR0, pci.CARDBUS_CIS, 4)


def write(peer: Peer, offset: int, width: int, value: int) -> Answer:
    """The answer to a write that may be refused."""
    return peer.ask(Op.CONF_WRITE, offset=offset, width=width, value=value)


def denied(peer: Peer, offset: int, width: int, value: int, rule: int, at: int) -> None:
    """The write is refused by `rule` for octet `at`, and nothing has changed [CFG-3]."""
    before = peer.conf_read(offset, width)
    answer = expect_error(
        write(peer, offset, width, value), Error.DENIED, what=f"{value:#x} written to {offset:#x}/{width}"
    )
    expect(
        (answer.rule, answer.detail) == (rule, at), f"rule {rule}, octet {at:#x}", f"{answer.rule}, {answer.detail:#x}"
    )
    after = peer.conf_read(offset, width)
    expect(after == before, f"{before:#x} still at {offset:#x}", f"{after:#x}")


def size_of(peer: Peer) -> int:
    return peer.info.devices[0].config_size


@case("CFG-1", "THR-2", "ERR-2")
def case_config_width(target: Target) -> None:
    """Only 1, 2 and 4 octets are a width."""
    with target.session() as peer:
        for op in (Op.CONF_READ, Op.CONF_WRITE):
            for width in (0, 3, 5, 6, 7, 8, 16, 128, 255):
                expect_error(peer.ask(op, offset=0, width=width), Error.BAD_SIZE, what=f"a width of {width}")


@case("CFG-1", "THR-2")
def case_config_alignment(target: Target) -> None:
    """An offset is a multiple of the width."""
    with target.session() as peer:
        for op in (Op.CONF_READ, Op.CONF_WRITE):
            for offset, width in ((1, 2), (3, 2), (1, 4), (2, 4), (3, 4), (U64, 2), (U64 - 1, 4), (4097, 2)):
                expect_error(peer.ask(op, offset=offset, width=width), Error.UNALIGNED, what=f"{offset:#x}/{width}")


@case("CFG-1", "THR-2")
def case_config_range(target: Target) -> None:
    """Nothing lies behind the end of configuration space, however large the offset."""
    with target.session() as peer:
        size = size_of(peer)
        for op in (Op.CONF_READ, Op.CONF_WRITE):
            for offset in (size, size + 252, 0x10000, 1 << 31, 1 << 32, (1 << 32) + 4, 1 << 63, U64 - 3):
                for width in (1, 2, 4):
                    expect_error(
                        peer.ask(op, offset=offset, width=width), Error.INVALID_OFFSET, what=f"{offset:#x}/{width}"
                    )
        for width in (1, 2, 4):
            peer.conf_read(size - width, width)


@case("CFG-1", "ERR-2")
def case_config_wide_value(target: Target) -> None:
    """A value wider than the access is refused."""
    with target.session() as peer:
        for width in (1, 2, 4):
            for value in (1 << 8 * width, U64):
                answer = write(peer, pci.CACHE_LINE if width == 1 else pci.COMMAND, width, value)
                expect_error(answer, Error.BAD_REQUEST, what=f"{value:#x} in {width} octets")


@case("CFG-2")
def case_config_byte_exact(target: Target) -> None:
    """Every octet is the same, whatever the width of the read it comes from."""
    with target.session() as peer:
        spaces = []
        for width in (4, 2, 1):
            slots = [peer.slot(Op.CONF_READ, offset=at, width=width) for at in range(0, size_of(peer), width)]
            answers = peer.ask_all(slots)
            for answer in answers:
                expect(not answer.error and answer.value < 1 << 8 * width, f"a value of {width} octets", str(answer))
            spaces.append(b"".join(answer.value.to_bytes(width, "little") for answer in answers))
        expect(spaces[0] == spaces[1] == spaces[2], "one space", "octets that depend on the width")


@case("CFG-3", "CFG-4")
def case_config_denied(target: Target) -> None:
    """Each rule that refuses a write names itself and the first octet it refused."""
    with target.session() as peer:
        for offset, rule in ((0x00, 1), (0x02, 1), (0x08, 1), (0x09, 1), (0x0B, 1), (0x2C, 1), (0x2E, 1), (0x0D, 5)):
            denied(peer, offset, 1, peer.conf_read(offset, 1) ^ 0x81, rule, offset)
        for offset, rule in (
            (0x0E, 5),
            (0x0F, 5),
            (0x34, 8),
            (0x3D, 9),
            (0x28, 12),
            (0x35, 12),
            (0x3E, 12),
            (0x3F, 12),
        ):
            denied(peer, offset, 1, peer.conf_read(offset, 1) ^ 0x41, rule, offset)
        denied(peer, 0x00, 4, peer.conf_read(0, 4) ^ 0x01000000, 1, 3)
        denied(peer, 0x3C, 4, peer.conf_read(0x3C, 4) ^ 0x00000100, 9, 0x3D)


@case("CFG-3", "ERR-3")
def case_config_denied_whole(target: Target) -> None:
    """Of a write that is refused in one octet no other octet takes effect."""
    with target.session() as peer:
        line = peer.conf_read(pci.CACHE_LINE, 4)
        denied(peer, pci.CACHE_LINE, 4, line ^ 0x00000110, LATENCY_RULE, pci.LATENCY)
        denied(peer, pci.COMMAND, 4, ALL_ON | 0x0200_0000, 3, pci.STATUS + 1)
        denied(peer, pci.COMMAND, 4, 0x0010_0000, 3, pci.STATUS)
        expect(peer.conf_read(pci.COMMAND, 2) == ALL_ON, "COMMAND as before", "a part of a refused write")


@case("CFG-6", "CFG-3")
def case_config_command(target: Target) -> None:
    """IO, MEM, MASTER and INTX_DISABLE can be written and read back; every other bit of COMMAND is refused."""
    with target.session(command=0) as peer:
        open_bits = ALL_ON | pci.COMMAND_INTX_DISABLE
        for bit in range(16):
            value = peer.conf_read(pci.COMMAND, 2) ^ 1 << bit
            if open_bits >> bit & 1:
                peer.conf_write(pci.COMMAND, 2, value)
                expect(
                    peer.conf_read(pci.COMMAND, 2) == value,
                    f"{value:#x} in COMMAND",
                    f"{peer.conf_read(pci.COMMAND, 2):#x}",
                )
            else:
                denied(peer, pci.COMMAND, 2, value, 2, pci.COMMAND + bit // 8)


@case("CFG-3", "CFG-10", "CFG-14")
def case_config_status(target: Target) -> None:
    """STATUS accepts zeros, which change nothing, and ones that clear an error; it refuses other ones."""
    with target.session() as peer:
        status = peer.conf_read(pci.STATUS, 2)
        peer.conf_write(pci.STATUS, 2, 0)
        peer.conf_write(pci.COMMAND, 4, ALL_ON)
        expect(peer.conf_read(pci.STATUS, 2) == status, f"STATUS {status:#x}", f"{peer.conf_read(pci.STATUS, 2):#x}")
        for bit in range(16):
            if pci.STATUS_ERRORS >> bit & 1:
                peer.conf_write(pci.STATUS, 2, 1 << bit)
                after = peer.conf_read(pci.STATUS, 2)
                expect(after & ~pci.STATUS_ERRORS == status & ~pci.STATUS_ERRORS, f"STATUS {status:#x}", f"{after:#x}")
            else:
                denied(peer, pci.STATUS, 2, 1 << bit, 3, pci.STATUS + bit // 8)


@case("CFG-3", "CFG-2")
def case_config_virtual(target: Target) -> None:
    """Cache line size and interrupt line keep what is written; the ROM BAR ignores it and reads as zero."""
    with target.session() as peer:
        for offset in (pci.CACHE_LINE, pci.INTERRUPT_LINE):
            for value in (0xA5, 0xFF, 0):
                peer.conf_write(offset, 1, value)
                expect(
                    peer.conf_read(offset, 1) == value, f"{value:#x} at {offset:#x}", f"{peer.conf_read(offset, 1):#x}"
                )
        peer.conf_write(pci.ROM_BAR, 4, 0xFFFFFFFF)
        expect(peer.conf_read(pci.ROM_BAR, 4) == 0, "no ROM", f"{peer.conf_read(pci.ROM_BAR, 4):#x}")


@case("CFG-3")
def case_config_capabilities(target: Target) -> None:
    """Capabilities can be read and not changed, nor can what lies above the first 256 octets."""
    with target.session() as peer:
        slots = [peer.slot(Op.CONF_READ, offset=at, width=1) for at in range(256)]
        space = bytes(answer.value for answer in peer.ask_all(slots))
        for _, at in pci.capabilities(space):
            denied(peer, at, 1, space[at] ^ 0x40, 10, at)
            denied(peer, at + 1, 1, space[at + 1] ^ 0x40, 10, at + 1)
        if size_of(peer) > 256:
            denied(peer, 0x100, 4, peer.conf_read(0x100, 4) ^ 1, 11, 0x100)


@case("CFG-10")
def case_config_same_value(target: Target) -> None:
    """What the back holds may be written with its present value, at every width."""
    with target.session() as peer:
        for offset, width in (
            (0x00, 4),
            (0x02, 2),
            (0x08, 4),
            (0x0C, 4),
            (0x0E, 1),
            (0x10, 4),
            (0x2C, 4),
            (0x34, 1),
            (0x3C, 2),
        ):
            peer.conf_write(offset, width, peer.conf_read(offset, width))


@case("CFG-10", "CFG-3")
def case_config_same_value_of_device(target: Target) -> None:
    """What comes from the device is refused even with the value it seems to have: the back does not hold it."""
    with target.session() as peer:
        for offset in (0x28, 0x35, 0x3E, 0x3F):
            denied(peer, offset, 1, peer.conf_read(offset, 1), 12, offset)
        denied(peer, 0x3C, 4, peer.conf_read(0x3C, 4), 12, 0x3E)
        denied(peer, 0x34, 4, peer.conf_read(0x34, 4), 12, 0x35)


@case("CFG-11")
def case_config_begins_off(target: Target) -> None:
    """A session begins with COMMAND off, whatever the session before it has left."""
    for _ in range(2):
        with target.session(command=0) as peer:
            command = peer.conf_read(pci.COMMAND, 2)
            expect(command == 0, "COMMAND zero", f"{command:#x}")
            peer.conf_write(pci.COMMAND, 2, ALL_ON | pci.COMMAND_INTX_DISABLE)


@case("CFG-7", "ERR-3")
def case_decode(target: Target) -> None:
    """BARs are served only while MEM, or IO for an I/O BAR, is on; the other bit does not help."""
    with target.session(command=0) as peer:
        for bar in peer.info.devices[0].bars:
            right = pci.COMMAND_IO if bar.flags & BarFlag.IO else MEM
            read = {"region": bar.index, "width": 4}
            for command in (0, ALL_ON & ~right):
                peer.conf_write(pci.COMMAND, 2, command)
                expect_error(peer.ask(Op.BAR_READ, **read), Error.DECODE_DISABLED)
                expect_error(peer.ask(Op.BAR_WRITE, **read), Error.DECODE_DISABLED)
                expect_error(peer.ask(Op.BAR_READ_BLOCK, **read, length=4), Error.DECODE_DISABLED)
                expect_error(peer.ask(Op.BAR_WRITE_BLOCK, **read, length=4), Error.DECODE_DISABLED)
            peer.conf_write(pci.COMMAND, 2, right)
            expect_error(peer.ask(Op.BAR_READ, **read), Error.SUCCESS)


@case("CFG-7", "ERR-3", needs="memory")
def case_decode_keeps_writes_out(target: Target) -> None:
    """A write refused for lack of decode does not reach the device, posted or not."""
    with target.session() as peer:
        peer.bar_write(0, 0x100, 4, 0x11111111)
        peer.conf_write(pci.COMMAND, 2, 0)
        expect_error(peer.ask(Op.BAR_WRITE, region=0, offset=0x100, width=4, value=2), Error.DECODE_DISABLED)
        peer.publish(peer.slot(Op.BAR_WRITE, region=0, offset=0x100, width=4, value=3, flags=1))
        peer.conf_write(pci.COMMAND, 2, MEM)
        value = peer.bar_read(0, 0x100, 4)
        expect(value == 0x11111111, "the value from before", f"{value:#x}")


@case("CFG-8", "CFG-4")
def case_bar_sizing(target: Target) -> None:
    """All ones written to the BAR registers read back as size masks and flags; registers without a BAR read as zero."""
    with target.session() as peer:
        bars = {bar.index: bar for bar in peer.info.devices[0].bars}
        before = {offset: peer.conf_read(offset, 4) for offset in BARS}
        for offset in BARS:
            peer.conf_write(offset, 4, 0xFFFFFFFF)
        for index, offset in enumerate(BARS):
            bar, lower = bars.get(index), bars.get(index - 1)
            wanted = 0
            if bar:
                flags = 0xF if not bar.flags & BarFlag.IO else 0x3
                wanted = -bar.size & 0xFFFFFFFF & ~flags | before[offset] & flags
            elif lower and lower.flags & BarFlag.MEM64:
                wanted = -lower.size >> 32 & 0xFFFFFFFF
            value = peer.conf_read(offset, 4)
            expect(value == wanted, f"{wanted:#x} in the register at {offset:#x}", f"{value:#x}")
            peer.conf_write(offset, 4, before[offset])
            value = peer.conf_read(offset, 4)
            expect(value == before[offset], f"{before[offset]:#x} restored", f"{value:#x}")


@case("CFG-4", "CFG-9", "CFG-2")
def case_bar_address(target: Target) -> None:
    """A BAR's flags and size bits ignore writes, its address bits keep them by the octet; accesses still work."""
    with target.session() as peer:
        bar = next(bar for bar in peer.info.devices[0].bars if bar.size <= 1 << 24)
        offset, before = pci.BAR0 + 4 * bar.index, peer.conf_read(pci.BAR0 + 4 * bar.index, 4)
        peer.conf_write(offset, 4, before ^ 0xF)
        expect(peer.conf_read(offset, 4) == before, f"the flags of {before:#x}", f"{peer.conf_read(offset, 4):#x}")
        peer.conf_write(offset + 3, 1, 0xA5)
        wanted = before & 0x00FFFFFF | 0xA5000000
        expect(peer.conf_read(offset, 4) == wanted, f"{wanted:#x}", f"{peer.conf_read(offset, 4):#x}")
        peer.bar_read(bar.index, 0, 4)
