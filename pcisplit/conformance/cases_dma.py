# SPDX-License-Identifier: MIT
"""Cases of ``spec/dma.md`` in which a device moves octets: QEMU's edu copies between its buffer and DMA memory."""

from pcisplit import pci
from pcisplit.conformance.boot import Window
from pcisplit.conformance.case import DEADLINE, case, expect
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import ALL_ON, EDU_DMA_BITS, Target
from pcisplit.conformance.watch import until
from pcisplit.wire import Op, RegionIndex

SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
START, TO_MEMORY, INTERRUPT = 1, 2, 4
BUFFER, BUFFER_SIZE = 0x40000, 4096
DMA_DONE = 0x100
IRQ_STATUS, IRQ_ACK = 0x24, 0x64


def octets(seed: int, length: int = BUFFER_SIZE) -> bytes:
    """A pattern without repetition over a page."""
    return b"".join((seed * 0x9E3779B1 + n * 0x85EBCA6B & 0xFFFFFFFF).to_bytes(4, "little") for n in range(length // 4))


def window(peer: Peer) -> Window:
    return peer.info.windows[0]


def copy(peer: Peer, source: int, destination: int, count: int, command: int) -> None:
    """Let edu's engine copy, and wait until it says that it is done."""
    for register, value in ((SOURCE, source), (DESTINATION, destination), (COUNT, count), (COMMAND, command | START)):
        peer.bar_write(0, register, 8, value)
    until(lambda: not peer.bar_read(0, COMMAND, 8) & START, "the end of a DMA copy", DEADLINE)


def put(peer: Peer, at: int, data: bytes) -> None:
    peer.maps[RegionIndex.DMA][at : at + len(data)] = data


def got(peer: Peer, at: int, length: int) -> bytes:
    return peer.maps[RegionIndex.DMA][at : at + length]


def round_trip(peer: Peer, seed: int) -> None:
    """A page goes from DMA memory into edu and comes back elsewhere."""
    first, data = window(peer), octets(seed)
    put(peer, first.offset, data)
    copy(peer, first.iova, BUFFER, BUFFER_SIZE, 0)
    copy(peer, BUFFER, first.iova + BUFFER_SIZE, BUFFER_SIZE, TO_MEMORY)
    came = got(peer, first.offset + BUFFER_SIZE, BUFFER_SIZE)
    expect(came == data, "the page that was sent", f"another, from {came[:16].hex()}")


@case("DMA-3", "ORD-10", "ORD-11", needs="edu dma")
def case_dma_copy(target: Target) -> None:
    """What the front wrote reaches the device, and what the device wrote the front, with the answer to a read."""
    with target.dma_session() as peer:
        for seed in range(1, 6):
            round_trip(peer, seed)


@case("DMA-8", needs="edu dma")
def case_dma_elsewhere(target: Target) -> None:
    """A session's window does not overlap that of the device's last session."""
    last: Window | None = None
    for _ in range(4):  # of the small windows of this kit there is room for many
        with target.dma_session() as peer:
            now = window(peer)
            apart = last is None or now.iova + now.size <= last.iova or last.iova + last.size <= now.iova
            expect(apart, "a window that was not the last session's", f"{now} after {last}")
            last = now


@case("DMA-3", "DMA-2", needs="edu dma")
def case_dma_whole_window(target: Target) -> None:
    """A window reaches from its first octet to its last."""
    with target.dma_session() as peer:
        first, data = window(peer), octets(77)
        put(peer, first.offset, data)
        copy(peer, first.iova, BUFFER, BUFFER_SIZE, 0)
        last = first.size - BUFFER_SIZE
        copy(peer, BUFFER, first.iova + last, BUFFER_SIZE, TO_MEMORY)
        expect(got(peer, first.offset + last, BUFFER_SIZE) == data, "the page at the end of the window", "another")


@case("ORD-12", "IRQ-5", needs="edu dma msi")
def case_dma_then_interrupt(target: Target) -> None:
    """When the interrupt at the end of a copy is seen, so are its octets."""
    with target.dma_session() as peer:
        first = window(peer)
        peer.do(Op.ENABLE_MSI, count=1)
        for seed in range(10, 14):
            data, before = octets(seed), peer.counter()
            put(peer, first.offset, data)
            copy(peer, first.iova, BUFFER, BUFFER_SIZE, 0)
            start = ((SOURCE, BUFFER), (DESTINATION, first.iova + BUFFER_SIZE), (COUNT, BUFFER_SIZE))
            for register, value in (*start, (COMMAND, START | TO_MEMORY | INTERRUPT)):
                peer.bar_write(0, register, 8, value)
            peer.wait(lambda before=before: peer.counter() != before, "the interrupt of a copy")  # type: ignore[misc]
            expect(
                got(peer, first.offset + BUFFER_SIZE, BUFFER_SIZE) == data, "the page behind the interrupt", "another"
            )
            expect(bool(peer.bar_read(0, IRQ_STATUS, 4) & DMA_DONE), "edu's bit for DMA", "not set")
            peer.bar_write(0, IRQ_ACK, 4, DMA_DONE)


@case("DMA-5", "DMA-3", needs="edu dma")
def case_dma_outside(target: Target) -> None:
    """A copy to or from outside the windows moves nothing of theirs and does not end the session."""
    with target.dma_session() as peer:
        first, data = window(peer), octets(5)
        put(peer, first.offset, data)
        outside = [first.iova + first.size, first.iova - BUFFER_SIZE, 0, (1 << EDU_DMA_BITS) - BUFFER_SIZE]
        for address in outside:
            copy(peer, address, BUFFER, BUFFER_SIZE, 0)
            copy(peer, BUFFER, address, BUFFER_SIZE, TO_MEMORY)
            peer.nop()
            expect(got(peer, first.offset, BUFFER_SIZE) == data, "DMA memory as it was", "changed")
        memory = peer.maps[RegionIndex.DMA]
        expect(not any(memory[first.offset + BUFFER_SIZE : first.offset + first.size]), "zeros elsewhere", "octets")
        round_trip(peer, 6)


@case("DMA-6", "CFG-6", needs="edu dma")
def case_dma_needs_master(target: Target) -> None:
    """While MASTER is off the device reaches no window; when it is on again, it does."""
    with target.dma_session() as peer:
        first, data = window(peer), octets(8)
        round_trip(peer, 7)
        put(peer, first.offset, data)
        put(peer, first.offset + BUFFER_SIZE, b"\x5a" * BUFFER_SIZE)
        peer.conf_write(pci.COMMAND, 2, ALL_ON & ~pci.COMMAND_MASTER)
        copy(peer, BUFFER, first.iova + BUFFER_SIZE, BUFFER_SIZE, TO_MEMORY)
        expect(
            got(peer, first.offset + BUFFER_SIZE, BUFFER_SIZE) == b"\x5a" * BUFFER_SIZE, "memory as it was", "a copy"
        )
        copy(peer, first.iova, BUFFER, BUFFER_SIZE, 0)  # must not read, either
        peer.conf_write(pci.COMMAND, 2, ALL_ON)
        copy(peer, BUFFER, first.iova + BUFFER_SIZE, BUFFER_SIZE, TO_MEMORY)
        expect(
            got(peer, first.offset + BUFFER_SIZE, BUFFER_SIZE) != data, "nothing read while MASTER was off", "the page"
        )
        round_trip(peer, 9)


@case("DMA-6", "CFG-11", needs="edu dma")
def case_dma_master_begins_off(target: Target) -> None:
    """A new session's device cannot master the bus before the front allows it."""
    with target.session(command=pci.COMMAND_MEM, dma_bytes=BUFFER_SIZE, dma_bits=EDU_DMA_BITS) as peer:
        first = window(peer)
        copy(peer, BUFFER, first.iova, BUFFER_SIZE, TO_MEMORY)
        put(peer, first.offset, octets(3))
        copy(peer, BUFFER, first.iova, BUFFER_SIZE, TO_MEMORY)
        expect(got(peer, first.offset, BUFFER_SIZE) == octets(3), "memory as the front wrote it", "another page")
