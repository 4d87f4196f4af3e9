# SPDX-License-Identifier: MIT
"""BARs that are memory and I/O ports, by messages: ivshmem's real RAM, pci-testdev's ports, sizes as a driver learns them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pcisplit import pci
from pcisplit.front import Bar, RemoteDevice
from pcisplit.proto.errors import AccessError
from pcisplit.wire import BarFlag, Error

from .check import PCI, bind_vfio, clause, find_device, qmp
from .serving import Serving

MIB = 1 << 20

DEVICES = [
    f"-object memory-backend-ram,id=m,size={16 * MIB},share=on",
    "ivshmem-plain,memdev=m,addr=0x10",
    "pci-testdev,membar=16M,addr=0x11",
]

IVSHMEM, TESTDEV = (0x1AF4, 0x1110), (0x1B36, 0x0005)

# pci-testdev, docs/specs/pci-testdev.rst of QEMU: a BAR shows the header of the test whose number was written to it.
TEST_NUMBER, TEST_WIDTH, TEST_OFFSET, TEST_DATA, TEST_COUNT, TEST_NAME = 0, 1, 4, 8, 12, 16

_backends: list[Serving] = []


def setup() -> None:
    """One backend for both; neither device has a reset."""
    (memory,), (ports,) = find_device(*IVSHMEM), find_device(*TESTDEV)
    bind_vfio(memory)
    bind_vfio(ports)
    _backends.append(Serving([f"memory={memory}", f"ports={ports}"], "--allow-no-reset").ready())


@contextmanager
def device(name: str, command: int = pci.COMMAND_MEM | pci.COMMAND_IO) -> Iterator[RemoteDevice]:
    with _backends[0].connect(name, dma=0) as session:
        found = session.acquire(name)
        found.config.write16(pci.COMMAND, command)
        yield found


def code(call: Callable[..., object], *arguments: object) -> Error:
    """The error with which an access is answered."""
    try:
        result = call(*arguments)
    except AccessError as refusal:
        print(refusal)
        return refusal.code
    raise AssertionError(f"{call}{arguments} gave {result!r}")


def machine_memory(offset: int, length: int) -> bytes:
    """What QEMU finds at an offset of ivshmem's BAR 2."""
    (name,) = find_device(*IVSHMEM)
    start = int(Path(PCI, "devices", name, "resource").read_text().splitlines()[2].split()[0], 16)
    said: str = qmp("human-monitor-command", **{"command-line": f"xp /{length}xb {start + offset:#x}"})
    return bytes(int(word, 16) for line in said.splitlines() for word in line.partition(":")[2].split())


@clause("BAR-1", "BAR-3")
def check_widths() -> None:
    """1, 2, 4 and 8 octets, at both ends of 16 MiB: what is written is in the machine's RAM, and nothing beside it."""
    with device("memory") as memory:
        ram = memory.bar(2)
        print(ram, ram.flags)
        assert (ram.size, ram.flags) == (16 * MIB, BarFlag.MEM64 | BarFlag.PREFETCHABLE)
        for start in (0, ram.size - 64):
            for width in (1, 2, 4, 8):
                ram.write_block(start, b"\xee" * 64)
                value = os.urandom(width)
                ram.write(start + 16, width, int.from_bytes(value, "little"))
                expected = b"\xee" * 16 + value + b"\xee" * (48 - width)
                assert machine_memory(start, 64) == expected
                assert ram.read_block(start, 64) == expected
                assert ram.read(start + 16, width) == int.from_bytes(value, "little")
        assert code(ram.read, ram.size, 1) is Error.INVALID_OFFSET
        assert code(ram.read, 6, 4) is Error.UNALIGNED
        assert code(ram.read, 0, 3) is Error.BAD_SIZE


@clause("BAR-20", "BAR-21", "BAR-22")
def check_blocks() -> None:
    """Blocks of every width come back as they went in, and crosswise."""
    data = os.urandom(3 * 4096 + 8)
    with device("memory") as memory:
        ram = memory.bar(2)
        for at, (write, read) in enumerate([(8, 1), (4, 8), (1, 4), (2, 2)]):
            start = at * 65536 + 8
            ram.write_block(start, data, write)
            assert ram.read_block(start, len(data), read) == data
        assert machine_memory(8, 256) == data[:256]
        large = os.urandom(MIB)
        ram.write_block(8 * MIB, large, 8)
        assert ram.read_block(8 * MIB, MIB, 8) == large


@clause("BAR-10", "ORD-5", "ORD-7")
def check_posted_writes() -> None:
    """Posted writes have no answer; they have happened, in order, when a later read is answered."""
    with device("memory") as memory:
        ram = memory.bar(2)
        values = [int.from_bytes(os.urandom(4), "little") for _ in range(200)]
        for at, value in enumerate(values):
            ram.post(4 * at, 4, value, publish=at % 50 == 49)
            ram.post32(0x1000, value)
        assert ram.read32(0x1000) == values[-1]
        assert ram.read_many([4 * at for at in range(200)]) == values
        assert machine_memory(0, 800) == b"".join(value.to_bytes(4, "little") for value in values)
        assert memory.posted_errors == 0
        ram.post32(ram.size, 1)
        memory.nop()
        assert memory.posted_errors == 1


def check_many_reads() -> None:
    """256 reads in flight at once, each with the value of its own register."""
    with device("memory") as memory:
        ram, offsets = memory.bar(2), [(97 * n) % 4096 * 8 for n in range(256)]
        ram.write_block(0, b"".join(n.to_bytes(8, "little") for n in range(4096)), 8)
        assert ram.read_many(offsets, 8) == [offset // 8 for offset in offsets]


@clause("BAR-40", "BAR-42", "BAR-43", "BAR-44")
def check_packs() -> None:
    """Several accesses in one slot: of a BAR that is mapped, and of one that is reached by file offset."""
    with device("memory") as memory:
        ram, registers = memory.bar(2), memory.bar(0)
        ram.post_many([0, 4, 0, 6, 8], [1, 2, 3, 4, 5])  # the fourth is unaligned: counted, the fifth made
        assert ram.read_many([0, 4, 8]) == [3, 2, 5]
        assert memory.posted_errors == 1
        position = registers.read32(8)
        registers.post_many([0, 0, 0], [1, 2, 5])
        assert registers.read_many([0, 8, 0]) == [5, position, 5]
        assert code(registers.read_many, [0, 1, 8]) is Error.UNALIGNED
        assert code(registers.read_many, [0, registers.size, 8]) is Error.INVALID_OFFSET
        registers.post_many([0, registers.size, 0], [1, 1, 0])
        assert registers.read_many([0]) == [0]
        assert memory.posted_errors == 2


@clause("BAR-4")
def check_small_bar() -> None:
    """ivshmem's registers are less than a page, so VFIO does not let them be mapped: file offset, and no 8 octets."""
    with device("memory") as memory:
        registers = memory.bar(0)
        assert registers.size == 256
        registers.write32(0, 0x5AA5)  # the interrupt mask, which plain ivshmem keeps
        assert registers.read32(0) == 0x5AA5
        registers.write32(0, 0)
        assert code(registers.read64, 0) is Error.BAD_SIZE
        assert code(registers.read_block, 0, 64, 8) is Error.BAD_SIZE


@clause("CFG-7", "BAR-4")
def check_ports() -> None:
    """An I/O BAR: gated by COMMAND.IO alone, 1, 2 and 4 octets, 8 refused; a write reaches the device once."""
    with device("ports", pci.COMMAND_MEM) as testdev:
        ports = testdev.bar(1)
        assert (ports.size, ports.flags) == (256, BarFlag.IO)
        assert code(ports.read8, TEST_NUMBER) is Error.DECODE_DISABLED
        assert code(ports.write8, TEST_NUMBER, 0) is Error.DECODE_DISABLED
        testdev.bar(0).read32(0)
        testdev.config.write16(pci.COMMAND, pci.COMMAND_IO)
        assert code(testdev.bar(0).read32, 0) is Error.DECODE_DISABLED
        ports.write8(TEST_NUMBER, 1)
        name = ports.read_block(TEST_NAME, 24, 1)
        print(name)
        assert name.startswith(b"portio-")
        for width in (1, 2, 4):
            assert ports.read_block(TEST_NAME, 24, width) == name
            assert ports.read(TEST_NAME, width) == int.from_bytes(name[:width], "little")
        assert code(ports.read64, TEST_NAME) is Error.BAD_SIZE
        assert code(ports.write64, TEST_NAME, 0) is Error.BAD_SIZE
        assert code(ports.read_block, TEST_NAME, 8, 8) is Error.BAD_SIZE
        assert code(ports.read8, 256) is Error.INVALID_OFFSET
        _count_writes(ports)


def _count_writes(ports: Bar) -> None:
    """Of the test without an eventfd, which counts the writes to the offset that its header names."""
    ports.write8(TEST_NUMBER, 0)
    where, width, value = ports.read32(TEST_OFFSET), ports.read8(TEST_WIDTH), ports.read8(TEST_DATA)
    for number in (1, 2, 3):
        ports.write(where, width, value)
        assert ports.read32(TEST_COUNT) == number
    ports.post(where, width, value)
    assert ports.read32(TEST_COUNT) == 4


@clause("CFG-8", "CFG-9")
def check_sizes() -> None:
    """All ones written to BAR registers, as any operating system does: the sizes are those that VFIO told us."""
    for name, kinds in (
        ("memory", {0: (256, 0), 2: (16 * MIB, 0xC)}),
        ("ports", {0: (4096, 0), 1: (256, 1), 2: (16 * MIB, 0xC)}),
    ):
        with device(name) as found:
            assert {bar.size for bar in found.bars} == {size for size, _ in kinds.values()}
            for index, (size, flags) in kinds.items():
                assert found.bar(index).size == size
                assert learn_size(found, index) == (size, flags)
            absent = pci.BAR0 + 4 * 5
            found.config.write32(absent, 0xFFFFFFFF)
            assert found.config.read32(absent) == 0


def learn_size(found: RemoteDevice, index: int) -> tuple[int, int]:
    """Size and flag bits of a BAR, by the sizing protocol. The address that it had is put back."""
    registers = [pci.BAR0 + 4 * index]
    before = found.config.read32(registers[0])
    wide = not before & pci.BAR_IO and before & pci.BAR_MEM64
    if wide:
        registers.append(registers[0] + 4)
    saved = [found.config.read32(register) for register in registers]
    for register in registers:
        found.config.write32(register, 0xFFFFFFFF)
    read = [found.config.read32(register) for register in registers]
    for register, value in zip(registers, saved, strict=True):
        found.config.write32(register, value)
    assert [found.config.read32(register) for register in registers] == saved
    flags = read[0] & (0x3 if before & pci.BAR_IO else 0xF)
    mask = (read[0] & ~flags) | (read[1] << 32 if wide else 0xFFFFFFFF << 32)
    return -mask & (1 << 64) - 1, flags


def check_backend_ends_well() -> None:
    """SIGTERM ends it with 0."""
    _backends[0].stop()
