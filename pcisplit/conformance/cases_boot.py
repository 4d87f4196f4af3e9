# SPDX-License-Identifier: MIT
"""Cases of ``spec/boot-info.md`` and of the regions in ``spec/region.md``: what the reply brings."""

import errno
import fcntl
import itertools
import mmap
import os
import socket
import stat

from pcisplit import pci, wire
from pcisplit.conformance.boot import BLOCK_SIZE
from pcisplit.conformance.case import case, expect, fail
from pcisplit.conformance.meeting import REPLY_SIZE
from pcisplit.conformance.octets import BACK, BACK_SIZE, DEVICE_SIZE, FRONT, FRONT_SIZE, SLOT, gaps
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import DMA_SIZE, EDU_DMA_BITS, Target
from pcisplit.wire import BarFlag, Direction, DoorbellType, RegionIndex, RingIndex

F_SEAL_FUTURE_WRITE = 0x10  # fcntl has no name for it before Python 3.13
FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def octets_zero(region: mmap.mmap, begin: int, end: int, what: str) -> None:
    """`region[begin:end]` holds zeros."""
    octets = region[begin:end]
    found = next((at for at, octet in enumerate(octets) if octet), None)
    expect(found is None, f"zeros in {what}", f"octet {begin + (found or 0):#x} is not zero")


def region_fd(peer: Peer, index: RegionIndex) -> int:
    """The descriptor of a region."""
    return peer.fds[peer.info.region(index).fd]


def refuses_resize(fd: int, size: int, what: str) -> None:
    """Neither a shrink nor a growth of the file succeeds, through its descriptor or a new one for writing."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        for way in (fd, again):
            for wanted in (0, size - wire.PAGE_SIZE, size + wire.PAGE_SIZE):
                refused(lambda way=way, wanted=wanted: os.ftruncate(way, wanted), f"{what} set to {wanted} octets")
    finally:
        os.close(again)


def refused(attempt: object, what: str) -> None:
    """`attempt` raises EPERM or EACCES, or what a descriptor without the right gives."""
    assert callable(attempt)
    try:
        attempt()
    except OSError as problem:
        allowed = (errno.EPERM, errno.EACCES, errno.EBADF, errno.EINVAL)
        expect(problem.errno in allowed, f"{what} refused", str(problem))
    else:
        fail(f"{what} refused", "success")


@case("BOOT-1", "REG-4", "MEET-26")
def case_record_lengths(target: Target) -> None:
    """The records fill the block, each as long as it says and at least as long as its kind; a device's come after it."""
    with target.meet() as peer:
        block = peer.reply[REPLY_SIZE:]
        lengths, at = [], BLOCK_SIZE
        while at < len(block):
            lengths.append(int.from_bytes(block[at + 2 : at + 4], "little"))
            expect(lengths[-1] >= 8 and lengths[-1] % 8 == 0, "a length of whole 8 octets", str(lengths))
            at += lengths[-1]
        count = int.from_bytes(block[12:16], "little")
        expect(len(lengths) == count and at == len(block), f"{count} records that fill the block", str(lengths))


@case("BOOT-7", "BOOT-8")
def case_places_of_descriptors(target: Target) -> None:
    """Each descriptor that a record names is there, and no two records have the same; a relayed run names none."""
    with target.meet(target.want()) as peer:
        info = peer.info
        used = [region.fd for region in info.regions] + [bell.fd for bell in info.doorbells]
        runs = [run for device in info.devices for run in device.runs]
        expect(all(run.fd == wire.NO_FD for run in runs), "no descriptor of a relayed run", str(runs))
        expect(sorted(used) == list(range(len(peer.fds))), f"{len(peer.fds)} descriptors, each named once", str(used))
        for device in info.devices:
            expect([run.index for run in device.runs] == list(range(len(device.runs))), "runs from 0 on", str(runs))


@case("BOOT-2", "RING-1")
def case_places(target: Target) -> None:
    """Headers, rings, bulk areas and device states lie aligned in the right region and overlap nowhere."""
    with target.meet() as peer:
        info = peer.info
        places: list[tuple[int, int, int]] = [(RegionIndex.F2B, 0, FRONT_SIZE), (RegionIndex.B2F, 0, BACK_SIZE)]
        places += [(region, offset, size) for what, region, offset, size, _ in info.places() if what != "window"]
        places.sort()
        for (region, offset, size), (after, start, _) in itertools.pairwise(places):
            expect(
                region != after or offset + size <= start, "places that do not overlap", f"{offset:#x} and {start:#x}"
            )
        ways = {
            RingIndex.REQUEST: RegionIndex.F2B,
            RingIndex.RESPONSE: RegionIndex.B2F,
            RingIndex.EVENT: RegionIndex.B2F,
        }
        expect({ring.index: ring.region for ring in info.rings} == ways, f"{ways}", str(info.rings))
        bulks = {Direction.FRONT_TO_BACK: RegionIndex.F2B, Direction.BACK_TO_FRONT: RegionIndex.B2F}
        expect({bulk.index: bulk.region for bulk in info.bulks} == bulks, f"{bulks}", str(info.bulks))
        expect(
            all(
                ring.slots.bit_count() == 1 and wire.RING_SLOTS_MIN <= ring.slots <= wire.RING_SLOTS_MAX
                for ring in info.rings
            ),
            "a power of two from 16 to 65536 of slots",
            str(info.rings),
        )


@case("BOOT-5", devices=2)
def case_device_order(target: Target) -> None:
    """Devices have the indices of the hello, in either order."""
    pair = [target.device, target.others()[0]]
    for chosen in (pair, pair[::-1]):
        with target.meet(*(target.want(device) for device in chosen)) as peer:
            names = {device.index: device.name for device in peer.info.devices}
            expect(names == {0: chosen[0].name, 1: chosen[1].name}, f"{[d.name for d in chosen]} in order", str(names))


@case("BOOT-6")
def case_virtual_addresses(target: Target) -> None:
    """BAR addresses are those of the virtual registers, and no interrupt number of the host is shown."""
    with target.session() as peer:
        expect(not peer.conf_read(pci.INTERRUPT_LINE, 1), "interrupt line 0", "another")
        for bar in peer.info.devices[0].bars:
            register = peer.conf_read(pci.BAR0 + 4 * bar.index, 4)
            address = register & (~3 if bar.flags & BarFlag.IO else ~15)
            if bar.flags & BarFlag.MEM64:
                address |= peer.conf_read(pci.BAR0 + 4 * bar.index + 4, 4) << 32
            expect(bar.address == address, f"BAR {bar.index} at {address:#x} as its register says", f"{bar.address:#x}")
            expect(bar.address % bar.size == 0, f"BAR {bar.index} at a multiple of its size", f"{bar.address:#x}")
        expect(not any(region.address for region in peer.info.regions), "no region address from a back", "one")


@case("BOOT-6")
def case_device_record(target: Target) -> None:
    """The device record says what configuration space says."""
    with target.session() as peer:
        device = peer.info.devices[0]
        ids = (peer.conf_read(pci.VENDOR_ID, 2), peer.conf_read(pci.DEVICE_ID, 2), peer.conf_read(pci.REVISION, 4) >> 8)
        record = (device.vendor, device.device_id, device.class_code)
        expect(record == ids, f"ids and class {ids}", str(record))
        expect(device.config_size in (256, 4096), "a configuration space of 256 or 4096", str(device.config_size))


@case("REG-1")
def case_regions(target: Target) -> None:
    """Both regions are memfds of 4 KiB pages, at most 4 MiB together."""
    with target.meet() as peer:
        for index in (RegionIndex.F2B, RegionIndex.B2F):
            fd = region_fd(peer, index)
            link = os.readlink(f"/proc/self/fd/{fd}")
            expect(link.startswith("/memfd:"), f"a memfd for {index.name}", link)
            page = os.fstatvfs(fd).f_bsize
            expect(page == wire.PAGE_SIZE, f"pages of 4 KiB in {index.name}", str(page))
        total = sum(peer.info.region(index).size for index in (RegionIndex.F2B, RegionIndex.B2F))
        expect(total <= wire.REGIONS_MAX_SIZE, "at most 4 MiB of regions", f"{total}")


@case("REG-1", "REG-4")
def case_regions_zeroed(target: Target) -> None:
    """The regions hold nothing of an earlier session: all is zero but the magics, the headers and the device states."""
    with target.session() as peer:
        peer.nop()
    with target.meet() as peer:
        f2b, b2f = peer.maps[RegionIndex.F2B], peer.maps[RegionIndex.B2F]
        expect(f2b[0:4] == wire.F2B_MAGIC.to_bytes(4, "little"), "the magic of f2b", f2b[0:4].hex())
        expect(b2f[0:4] == wire.B2F_MAGIC.to_bytes(4, "little"), "the magic of b2f", b2f[0:4].hex())
        epoch = FRONT["epoch"][0]
        octets_zero(f2b, 4, epoch, "f2b")
        octets_zero(f2b, epoch + 4, len(f2b), "f2b")
        for region, words in ((f2b, FRONT), (b2f, BACK)):
            at = words["epoch"][0]
            expect(region[at : at + 4] == (1).to_bytes(4, "little"), "epoch 1", region[at : at + 4].hex())
        expect(peer.info.epoch == 1, "epoch 1 in the boot-info block", str(peer.info.epoch))
        for ring in peer.info.rings:
            octets_zero(peer.maps[ring.region], ring.offset, ring.offset + ring.slots * SLOT, f"ring {ring.index}")
        for bulk in peer.info.bulks:
            octets_zero(peer.maps[bulk.region], bulk.offset, bulk.offset + bulk.size, f"bulk area {bulk.index}")
        for begin, end in gaps(BACK, BACK_SIZE):
            octets_zero(b2f, begin, end, "the back header")
        for device in peer.info.devices:
            octets_zero(b2f, device.state_offset + 8, device.state_offset + DEVICE_SIZE, "a device state")
            for run in device.runs:
                octets_zero(b2f, run.counters, run.counters + 8 * run.count, "the counters")
                for at in (run.totals, run.pending, run.masks):
                    octets_zero(b2f, at, at + 8 * -(-run.count // 64), "the words of the vectors")


@case("REG-2")
def case_b2f_seals(target: Target) -> None:
    """b2f carries the four seals, and cannot be written, resized or unsealed by whoever has its descriptor."""
    with target.session() as peer:
        fd, size = region_fd(peer, RegionIndex.B2F), peer.info.region(RegionIndex.B2F).size
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        wanted = F_SEAL_FUTURE_WRITE | FIXED | fcntl.F_SEAL_SEAL
        expect(seals & wanted == wanted, f"seals {wanted:#x}", f"{seals:#x}")
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            for way in (fd, again):
                refused(lambda way=way: os.pwrite(way, b"\xff", 4), "a write to b2f")
                refused(
                    lambda way=way: mmap.mmap(way, size, mmap.MAP_SHARED, mmap.PROT_WRITE), "b2f mapped for writing"
                )
        finally:
            os.close(again)
        refuses_resize(fd, size, "b2f")
        refused(lambda: peer.maps[RegionIndex.B2F].madvise(mmap.MADV_REMOVE), "a hole in b2f")
        peer.nop()


@case("REG-3")
def case_f2b_seals(target: Target) -> None:
    """f2b can be mapped and written at the meeting; once the front is Initialised its seals are complete."""
    with target.meet() as peer:
        fd, size = region_fd(peer, RegionIndex.F2B), peer.info.region(RegionIndex.F2B).size
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        expect(seals == wanted, f"seals {wanted:#x} at the meeting", f"{seals:#x}")
        refuses_resize(fd, size, "f2b")
        peer.connect()
        wanted |= F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        expect(seals == wanted, f"seals {wanted:#x} when Connected", f"{seals:#x}")
        refused(lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE), "a further seal on f2b")
        peer.nop()


@case("RING-20", "RING-21")
def case_doorbells(target: Target) -> None:
    """An eventfd to the back; from it a stream socket, non-blocking, that the front cannot write to."""
    with target.meet() as peer:
        types = {bell.index: bell.type for bell in peer.info.doorbells}
        wanted = {Direction.FRONT_TO_BACK: DoorbellType.EVENTFD, Direction.BACK_TO_FRONT: DoorbellType.SOCKET}
        expect(types == wanted, str(wanted), str(types))
        link = os.readlink(f"/proc/self/fd/{peer.fd(Direction.FRONT_TO_BACK)}")
        expect("eventfd" in link, "an eventfd", link)
        bell = peer.fd(Direction.BACK_TO_FRONT)
        expect(stat.S_ISSOCK(os.fstat(bell).st_mode), "a socket", oct(os.fstat(bell).st_mode))
        expect(bool(fcntl.fcntl(bell, fcntl.F_GETFL) & os.O_NONBLOCK), "a non-blocking socket", "a blocking one")
        with socket.socket(fileno=os.dup(bell)) as end:
            expect(end.type == socket.SOCK_STREAM, "a stream socket", str(end.type))
            try:
                end.send(b"!", socket.MSG_NOSIGNAL)
            except BrokenPipeError:
                return
            expect(False, "EPIPE for a write by the front", "a write that went through")


@case("DMA-1", needs="dma")
def case_dma_sealed(target: Target) -> None:
    """DMA memory is a zeroed memfd whose size is sealed and which the front may write."""
    with target.meet(dma_bytes=DMA_SIZE) as peer:
        region = peer.info.region(RegionIndex.DMA)
        fd = region_fd(peer, RegionIndex.DMA)
        expect(region.size >= DMA_SIZE and region.writable == 1, f"{DMA_SIZE:#x} writable octets", str(region))
        expect(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & FIXED == FIXED, "DMA memory sealed against change of size", "not")
        refuses_resize(fd, region.size, "DMA memory")
        octets_zero(peer.maps[RegionIndex.DMA], 0, region.size, "DMA memory")
        peer.maps[RegionIndex.DMA][:] = b"\xa5" * region.size


@case("DMA-1", needs="dma")
def case_dma_not_reused(target: Target) -> None:
    """What a session leaves in its DMA memory is not seen by the next."""
    for _ in range(3):
        with target.meet(dma_bytes=DMA_SIZE) as peer:
            memory = peer.maps[RegionIndex.DMA]
            octets_zero(memory, 0, len(memory), "DMA memory of a new session")
            memory[:] = b"\xa5" * len(memory)


@case("DMA-2", needs="dma")
def case_dma_windows(target: Target) -> None:
    """Windows lie below the front's address bits, above the first MiB, at multiples of 2 MiB, with gaps between."""
    for bits in (EDU_DMA_BITS, 32, 64):
        with target.meet(dma_bytes=DMA_SIZE, dma_bits=bits) as peer:
            windows = sorted(peer.info.windows, key=lambda window: window.iova)
            expect(sum(window.size for window in windows) >= DMA_SIZE, "windows for all of it", str(windows))
            for window in windows:
                fits = window.iova >= 1 << 20 and window.iova + window.size <= 1 << bits and not window.iova % (2 << 20)
                expect(
                    fits, f"a window within {bits} bits at a multiple of 2 MiB", f"{window.iova:#x}+{window.size:#x}"
                )
            for low, high in itertools.pairwise(windows):
                expect(low.iova + low.size < high.iova, "a gap between windows", f"{low} {high}")
