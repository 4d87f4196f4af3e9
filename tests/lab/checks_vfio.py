# SPDX-License-Identifier: MIT
"""VfioDevice on real VFIO: edu alone, behind a port and with two functions, RAM, an I/O BAR, NVMe's MSI-X and reset."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pcisplit.back.devices.device import Area, AreaKind, BarInfo
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.function import VfioDevice
from pcisplit.back.devices.vfio.group import VfioHost
from pcisplit.errors import DeviceError
from pcisplit.pci import (
    CAP_MSIX,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEM,
    VENDOR_ID,
    Bdf,
    find_capability,
)
from pcisplit.wire import BarFlag, Error, ResetMethod

from .check import bind_vfio, clause, dmesg, dmesg_end, find_device, iommu_group, wait_until

DEVICES = [
    "edu,addr=0x10",
    "pcie-root-port,id=alone,chassis=1,slot=1,addr=0x11",
    "edu,bus=alone",
    "-object memory-backend-ram,id=ram,size=4M,share=on",
    "ivshmem-plain,memdev=ram,addr=0x12",
    "pci-testdev,addr=0x13",
    "-drive if=none,id=disk,file=null-co://,format=raw",
    "nvme,drive=disk,serial=lab,addr=0x14",
    "pcie-root-port,id=shared,chassis=2,slot=2,addr=0x15",
    "edu,bus=shared,addr=0x0.0,multifunction=on",
    "edu,bus=shared,addr=0x0.1",
]

EDU, IVSHMEM, TESTDEV, NVME = (0x1234, 0x11E8), (0x1AF4, 0x1110), (0x1B36, 0x0005), (0x1B36, 0x0010)

# Registers of edu, in octets: https://www.qemu.org/docs/master/specs/edu.html
ID, LIVENESS, RAISE, ACKNOWLEDGE = 0x00, 0x04, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
DMA_START, DMA_TO_MEMORY = 1 << 0, 1 << 1
EDU_BUFFER = 0x40000

NVME_CC, NVME_CC_EN = 0x14, 1 << 0

WINDOW = 0x200000  # octets, and the first IOVA at which tests map; below edu's 28 bits
SECONDS = 10.0  # for what takes 100 ms; the guest is emulated
QUIET = 0.3  # for what must not come


def setup() -> None:
    """Gives all devices to vfio-pci for all checks."""
    for identity in (EDU, IVSHMEM, TESTDEV, NVME):
        for name in find_device(*identity):
            bind_vfio(name)


def edus() -> list[Bdf]:
    """Alone on the root bus, alone behind a port, and the two functions of one device."""
    return [Bdf.parse(name) for name in find_device(*EDU)]


@contextmanager
def acquired(bdf: Bdf, expect_id: tuple[int, int] | None = None, host: VfioHost | None = None) -> Iterator[VfioDevice]:
    device = VfioDevice(bdf, expect_id, host or VfioHost())
    try:
        device.acquire()
        yield device
    finally:
        device.shutdown()


def only(identity: tuple[int, int]) -> Bdf:
    (name,) = find_device(*identity)
    return Bdf.parse(name)


def bar_of(device: VfioDevice, index: int) -> BarInfo:
    return next(bar for bar in device.bars if bar.index == index)


def register(device: VfioDevice, offset: int, kind: type[ctypes.c_uint32] | type[ctypes.c_uint64]) -> ctypes.c_uint32:
    """A register in the mapped part of BAR 0. It keeps the mapping from being closed: do not keep it."""
    area = next(area for area in bar_of(device, 0).areas if area.start <= offset < area.end)
    assert area.kind is AreaKind.MAPPED and area.mapping is not None, area
    return kind.from_buffer(area.mapping, offset - area.start)  # type: ignore[return-value]


def load(device: VfioDevice, offset: int) -> int:
    return register(device, offset, ctypes.c_uint32).value


def store(device: VfioDevice, offset: int, value: int) -> None:
    register(device, offset, ctypes.c_uint32).value = value


def master(device: VfioDevice, on: bool = True) -> None:
    command = device.config_read(COMMAND, 2)
    device.config_write(COMMAND, 2, command | COMMAND_MASTER if on else command & ~COMMAND_MASTER)


def dma(device: VfioDevice, source: int, destination: int, count: int, command: int) -> None:
    """One transfer of edu, which takes it 100 ms."""
    for offset, value in ((DMA_SOURCE, source), (DMA_DESTINATION, destination), (DMA_COUNT, count)):
        register(device, offset, ctypes.c_uint64).value = value
    register(device, DMA_COMMAND, ctypes.c_uint64).value = DMA_START | command
    wait_until(lambda: not load(device, DMA_COMMAND) & DMA_START, SECONDS, "the end of edu's DMA")


class Memory:
    """DMA memory of a session: a memfd and its mapping here."""

    def __init__(self, size: int = WINDOW) -> None:
        self.fd = os.memfd_create("dma")
        self.size = size
        os.ftruncate(self.fd, size)
        self.octets = mmap.mmap(self.fd, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.octets))

    def give(self, device: VfioDevice, iova: int = WINDOW) -> None:
        device.map_dma(self.address, self.fd, self.size, iova)

    def round_trip(self, device: VfioDevice, message: bytes, iova: int = WINDOW) -> bytes:
        """What comes back after the device has fetched a message from the memory and put it a page further on."""
        self.octets[0 : len(message)] = message
        dma(device, iova, EDU_BUFFER, len(message), 0)
        dma(device, EDU_BUFFER, iova + mmap.PAGESIZE, len(message), DMA_TO_MEMORY)
        return self.octets[mmap.PAGESIZE : mmap.PAGESIZE + len(message)]


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def signalled(fd: int, seconds: float = SECONDS) -> int:
    """The count of an eventfd, 0 if nothing comes in time."""
    return os.eventfd_read(fd) if select.select([fd], [], [], seconds)[0] else 0


def refusal(bdf: Bdf, expect_id: tuple[int, int] | None = None) -> str:
    """The sentence with which a device is refused."""
    try:
        with acquired(bdf, expect_id):
            raise AssertionError(f"{bdf} was not refused")
    except DeviceError as error:
        print(error)
        assert error.code is Error.DEVICE_FAILED
        return str(error)


def code(call: Callable[..., object], *arguments: object) -> Error:
    """The code of the DeviceError that a call raises."""
    try:
        result = call(*arguments)
    except DeviceError as error:
        print(error)
        return error.code
    raise AssertionError(f"{call} returned {result!r}")


def follow(sentence: str) -> None:
    """Does, in a shell, what a refusal says that root is to do."""
    commands = sentence.partition("as root: ")[2]
    assert commands, sentence
    subprocess.run(["sh", "-ec", commands], check=True)


def unbind(name: str) -> None:
    function = Path("/sys/bus/pci/devices", name)
    (function / "driver_override").write_text("\n")
    if (function / "driver").exists():
        (function / "driver" / "unbind").write_text(name)


def open_files() -> dict[int, str]:
    """The descriptors of this process that are VFIO's."""
    files = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # that of the listing itself
            continue
        if "vfio" in target:
            files[int(entry)] = target
    return files


def check_identity() -> None:
    """edu's identification register, through the mapped area; its one BAR; its configuration space."""
    with acquired(edus()[0], EDU) as device:
        print(device.spec, device.group, device.bars, device.config_size, device.vectors, device.iova_ranges)
        assert device.group == f"iommu-group-{iommu_group(device.spec)}"
        (bar,) = device.bars
        assert (bar.index, bar.size, bar.flags) == (0, 1 << 20, BarFlag(0))
        assert [area[:4] for area in bar.areas] == [(0, 1 << 20, AreaKind.MAPPED, 15)]
        assert load(device, ID) == 0x010000ED
        store(device, LIVENESS, 0x12345678)
        assert load(device, LIVENESS) == 0xEDCBA987
        assert device.bar_read(0, LIVENESS, 4) == 0xEDCBA987
        assert (device.config_size, device.vectors, device.dma_bits) == (256, 1, 64)


def check_config() -> None:
    """Reads of every width; writes; what does not fit is refused and never reaches the next region of the file."""
    with acquired(edus()[0]) as device:
        assert device.config_read(VENDOR_ID, 4) == EDU[1] << 16 | EDU[0]
        assert device.config_read(VENDOR_ID, 2) == EDU[0]
        assert device.config_read(VENDOR_ID + 1, 1) == EDU[0] >> 8
        device.config_write(0x3C, 1, 0x5A)
        assert device.config_read(0x3C, 1) == 0x5A
        assert code(device.config_read, 256, 1) is Error.INVALID_OFFSET
        assert code(device.config_read, 254, 4) is Error.INVALID_OFFSET
        assert code(device.config_read, -4, 4) is Error.INVALID_OFFSET
        assert code(device.config_read, 0, 8) is Error.BAD_SIZE
        assert code(device.config_write, 0x3C, 1, 0x100) is Error.BAD_REQUEST
        assert code(device.bar_read, 0, 1 << 20, 1) is Error.INVALID_OFFSET
        assert code(device.bar_read, 1, 0, 1) is Error.INVALID_OFFSET
        assert code(device.bar_read, 0, 0, 8) is Error.BAD_SIZE
        assert code(device.acquire) is Error.BUSY


def check_command_when_acquired() -> None:
    """Decode is on as the BARs need it, MASTER off, INTx disabled; in a second session as well."""
    for bdf, decode in ((edus()[0], COMMAND_MEM), (only(TESTDEV), COMMAND_MEM | COMMAND_IO)):
        host = VfioHost()
        for _ in range(2):
            with acquired(bdf, host=host) as device:
                command = device.config_read(COMMAND, 2)
                assert command & 0x407 == decode | COMMAND_INTX_DISABLE, hex(command)
                device.config_write(COMMAND, 2, COMMAND_MASTER)


def check_wrong_identity_refused() -> None:
    """A device that is not the one the operator named is refused when it is configured, with what was found."""
    sentence = refusal(edus()[0], (0x8086, 0x10FB))
    assert "is 1234:11e8, not 8086:10fb" in sentence
    assert "lspci" in refusal(Bdf.parse("0000:00:1b.7"))


def check_unbound_refused() -> None:
    """A device without a driver, or with another, is refused; doing what the sentence says makes it work."""
    edu = edus()[0]
    unbind(str(edu))
    sentence = refusal(edu)
    assert "no driver has it" in sentence
    assert f"echo vfio-pci > /sys/bus/pci/devices/{edu}/driver_override" in sentence
    assert f"echo {edu} > /sys/bus/pci/drivers_probe" in sentence
    follow(sentence)
    with acquired(edu):
        pass

    nvme = only(NVME)
    unbind(str(nvme))
    subprocess.run(["modprobe", "nvme"], check=True)
    wait_until(lambda: Path("/sys/bus/pci/devices", str(nvme), "driver").exists(), SECONDS, "the nvme driver")
    sentence = refusal(nvme)
    assert "driver nvme has it" in sentence
    assert f"echo {nvme} > /sys/bus/pci/devices/{nvme}/driver/unbind" in sentence
    follow(sentence)
    with acquired(nvme):
        pass


def check_group_not_viable_refused() -> None:
    """A group with a member that another driver has is refused; the sentence names the member and how to bind it."""
    subprocess.run(["modprobe", "ahci"], check=True)
    sata, smbus = "0000:00:1f.2", "0000:00:1f.3"
    wait_until(lambda: Path("/sys/bus/pci/devices", sata, "driver").exists(), SECONDS, "the ahci driver")
    bind_vfio(smbus)
    sentence = refusal(Bdf.parse(smbus))
    assert f"{sata} (driver ahci)" in sentence
    follow(sentence)
    with acquired(Bdf.parse(smbus)):
        pass
    unbind(smbus)


@clause("DMA-4")
def check_identity_domain_refused() -> None:
    """A group whose default domain is identity is refused; doing what the sentence says makes it work."""
    edu = edus()[0]
    kind = Path("/sys/kernel/iommu_groups", str(iommu_group(str(edu))), "type")
    before = kind.read_text()
    unbind(str(edu))
    kind.write_text("identity")
    bind_vfio(str(edu))
    sentence = refusal(edu)
    assert "identity" in sentence
    unbind(str(edu))
    subprocess.run(["sh", "-ec", sentence[sentence.index("echo DMA") :].partition(",")[0]], check=True)
    bind_vfio(str(edu))
    with acquired(edu):
        print(before, kind.read_text())


@clause("DMA-4")
def check_unsafe_interrupts_refused() -> None:
    """A host that allows unsafe interrupts is refused; doing what the sentence says makes it work."""
    parameter = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
    parameter.write_text("Y")
    sentence = refusal(edus()[0])
    subprocess.run(["sh", "-ec", sentence[sentence.index("echo N") :].partition(",")[0]], check=True)
    assert parameter.read_text().strip() == "N"
    with acquired(edus()[0]):
        pass


def check_busy_group_refused() -> None:
    """A group that another opener has, or a node that this user may not open, is refused with the reason."""
    node = f"/dev/vfio/{iommu_group(str(edus()[0]))}"
    other = os.open(node, os.O_RDWR)
    sentence = refusal(edus()[0])
    assert node in sentence and "another process has it" in sentence
    os.close(other)
    os.seteuid(65534)
    assert "may not open it" in refusal(edus()[0])
    os.seteuid(0)
    assert not open_files()


@clause("DMA-3", "DMA-6")
def check_dma() -> None:
    """edu moves octets through the IOMMU once MASTER is on, not before; and not after the window is unmapped."""
    with acquired(edus()[0]) as device:
        memory = Memory()
        memory.give(device)
        assert device.config_read(COMMAND, 2) & COMMAND_MASTER == 0
        assert memory.round_trip(device, b"masterless") == bytes(10)
        master(device)
        assert memory.round_trip(device, b"through the IOMMU") == b"through the IOMMU"
        before = dmesg_end()
        assert device.unmap_dma() == WINDOW
        assert device.unmap_dma() == 0
        memory.octets[mmap.PAGESIZE : mmap.PAGESIZE + 8] = b"mine now"
        assert memory.round_trip(device, b"gone") == b"mine"
        wait_until(lambda: any("DMAR" in line and "fault addr" in line for line in dmesg(before)), SECONDS, "a fault")
        memory.give(device)  # and again, as the next session would
        assert memory.round_trip(device, b"again") == b"again"
        assert device.unmap_dma() == WINDOW


def check_dma_refusals() -> None:
    """What the IOMMU cannot map is refused: the MSI window, beyond its width, twice differently, unaligned."""
    with acquired(edus()[0]) as device:
        ranges = [(one.first, one.last) for one in device.iova_ranges]
        print([tuple(map(hex, one)) for one in ranges])
        assert ranges[0] == (0, 0xFEDFFFFF)
        assert ranges[1][0] == 0xFEF00000 and ranges[1][1] >= (1 << 39) - 1
        memory = Memory()
        for iova in (0xFEE00000, 1 << 62, 0x1001):
            assert code(memory.give, device, iova) is Error.OP_FAILED
        memory.give(device)
        assert code(Memory().give, device) is Error.BUSY
        assert device.unmap_dma() == WINDOW


def check_dma_beyond_memory_limit() -> None:
    """Without the right to lock so much memory, the sentence says how much there is and how much it takes."""
    with acquired(edus()[0]) as device:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        os.seteuid(65534)  # without CAP_IPC_LOCK, too
        memory = Memory()
        try:
            memory.give(device)
        except DeviceError as error:
            print(error)
            assert "65536 octets" in str(error) and "ulimit -l 2048" in str(error)
        else:
            raise AssertionError("the limit was not heeded")
        finally:
            os.seteuid(0)


def check_unmapped_size() -> None:
    """When the kernel unmaps another size than was mapped, that is an error, and the group is not used again."""
    host = VfioHost()
    with acquired(edus()[0], host=host) as device:
        Memory().give(device)
        (container,) = (fd for fd, target in open_files().items() if target == "/dev/vfio/vfio")
        request = abi.Type1DmaUnmap(ctypes.sizeof(abi.Type1DmaUnmap), 0, WINDOW, WINDOW)
        fcntl.ioctl(container, abi.VFIO_IOMMU_UNMAP_DMA, request)
        assert request.size == WINDOW
        assert code(device.unmap_dma) is Error.OP_FAILED
        assert device.unmap_dma() == 0
        device.close()
        assert code(device.acquire) is Error.DEVICE_FAILED


def check_shared_group() -> None:
    """Two functions of a group share its container: a window is mapped once, and unmapped with its last user."""
    host, (first, second) = VfioHost(), edus()[2:]
    with acquired(first, host=host) as one, acquired(second, host=host) as two:
        assert one.group == two.group
        assert sorted(open_files().values()).count("/dev/vfio/vfio") == 1
        memory = Memory()
        for device in (one, two):
            memory.give(device)
            master(device)
            assert memory.round_trip(device, device.spec.encode()) == device.spec.encode()
        assert one.unmap_dma() == 0
        assert memory.round_trip(two, b"still") == b"still"
        one.shutdown()
        assert memory.round_trip(two, b"alone") == b"alone"
        assert two.unmap_dma() == WINDOW
    assert not open_files()


def check_msi() -> None:
    """An MSI signals the eventfd once; enabling again replaces it; nothing comes after disabling."""
    with acquired(edus()[0]) as device:
        old, new = eventfd(), eventfd()
        device.disable_msi()
        master(device)
        assert code(device.enable_msi, [old, new]) is Error.TOO_MANY_VECTORS
        assert code(device.enable_msi, []) is Error.TOO_MANY_VECTORS
        device.enable_msi([old])
        store(device, RAISE, 1)
        assert signalled(old) == 1
        assert signalled(old, QUIET) == 0
        store(device, ACKNOWLEDGE, 1)
        device.enable_msi([new])
        store(device, RAISE, 1)
        assert signalled(new) == 1
        assert signalled(old, QUIET) == 0
        device.disable_msi()
        store(device, RAISE, 1)
        assert signalled(new, QUIET) == 0
        device.disable_msi()
        store(device, ACKNOWLEDGE, 1)
        device.enable_msi([old])
        store(device, RAISE, 1)
        assert signalled(old) == 1


@clause("BAR-5")
def check_nvme_msix_carved() -> None:
    """No mapped area overlaps the pages of NVMe's MSI-X table or pending bits; their octets are denied exactly."""
    with acquired(only(NVME), NVME) as device:
        assert (device.config_size, device.vectors) == (4096, 0)
        (bar,) = device.bars
        for area in bar.areas:
            print(hex(area.start), hex(area.end), area.kind.name, area.widths)
        assert bar.flags == BarFlag.MEM64
        assert [bar.areas[0].start, *(area.end for area in bar.areas)] == [
            *(area.start for area in bar.areas),
            bar.size,
        ]
        config = b"".join(device.config_read(offset, 4).to_bytes(4, "little") for offset in range(0, 256, 4))
        capability = find_capability(config, CAP_MSIX)
        assert capability is not None
        vectors = (device.config_read(capability + 2, 2) & 0x7FF) + 1
        table, pending = (device.config_read(capability + at, 4) for at in (4, 8))
        assert table & 7 == pending & 7 == 0
        denied = [area[:2] for area in bar.areas if area.kind is AreaKind.DENIED]
        assert denied == [(table, table + 16 * vectors), (pending, pending + (vectors + 63) // 64 * 8)]
        for start, end in denied:
            first, last = start // mmap.PAGESIZE, (end - 1) // mmap.PAGESIZE
            for area in bar.areas:
                pages = range(area.start // mmap.PAGESIZE, -(-area.end // mmap.PAGESIZE))
                assert area.kind is not AreaKind.MAPPED or not {first, last} & set(pages), area
        assert code(device.bar_read, 0, table, 4) is Error.DENIED
        assert code(device.bar_write, 0, table - 2, 4, 0) is Error.DENIED
        owner = next(area for area in bar.areas if area.kind is AreaKind.OWNER)
        assert device.bar_read(0, owner.start, 4) >= 0
        assert load(device, 8) == device.bar_read(0, 8, 4) == 0x00010400  # VS: NVMe 1.4


@clause("LIFE-21")
def check_nvme_reset() -> None:
    """A function-level reset clears CC.EN, and leaves decode on and MASTER off although it was on before."""
    with acquired(only(NVME)) as device:
        assert device.resettable
        master(device)
        store(device, NVME_CC, NVME_CC_EN)
        assert load(device, NVME_CC) & NVME_CC_EN
        begun = time.monotonic()
        assert device.reset() is ResetMethod.FUNCTION
        print(f"{time.monotonic() - begun:.3f} s")
        assert load(device, NVME_CC) & NVME_CC_EN == 0
        assert device.config_read(COMMAND, 2) & 0x407 == COMMAND_MEM | COMMAND_INTX_DISABLE


@clause("LIFE-21")
def check_reset_of_each_edu() -> None:
    """On the root bus edu has no reset; behind a port it has its bus's; two functions have it if VFIO has both."""
    root, port, first, second = edus()
    with acquired(root) as device:
        assert not device.resettable
        assert code(device.reset) is Error.NO_RESET
    for bdf, method in ((port, ResetMethod.FUNCTION), (first, ResetMethod.BUS)):
        with acquired(bdf) as device:
            assert device.resettable
            master(device)
            fd = eventfd()
            device.enable_msi([fd])
            assert device.reset() is method
            assert device.config_read(COMMAND, 2) & 0x407 == COMMAND_MEM | COMMAND_INTX_DISABLE
            assert load(device, ID) == 0x010000ED
            master(device)
            store(device, RAISE, 1)  # the reset has ended the interrupts of the old generation
            assert signalled(fd, QUIET) == 0
            store(device, ACKNOWLEDGE, 1)
            device.enable_msi([fd])
            store(device, RAISE, 1)
            assert signalled(fd) == 1
    unbind(str(second))
    with acquired(first) as device:
        assert not device.resettable
    bind_vfio(str(second))


def check_reset_of_shared_bus() -> None:
    """The reset of one function's bus leaves its neighbour of the same session usable: mappings, COMMAND, DMA."""
    host, (first, second) = VfioHost(), edus()[2:]
    with acquired(first, host=host) as one, acquired(second, host=host) as two:
        memory = Memory()
        memory.give(two)
        master(two)
        assert one.reset() is ResetMethod.BUS
        assert load(two, ID) == 0x010000ED
        print(hex(two.config_read(COMMAND, 2)))
        assert two.config_read(COMMAND, 2) & COMMAND_MASTER  # restored by the kernel, as before
        assert memory.round_trip(two, b"neighbour") == b"neighbour"
        assert two.unmap_dma() == WINDOW


def check_group_kept_between_sessions() -> None:
    """Group and container stay open between close and the next acquire, without mappings; shutdown closes them."""
    assert not open_files()
    device = VfioDevice(edus()[0], EDU, VfioHost())
    device.close()
    device.acquire()
    opened = open_files()
    assert len(opened) == 4, opened  # container, group, device, and mmap's own copy of the device
    assert "vfio" in Path("/proc/self/maps").read_text()
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in opened)
    node = f"/dev/vfio/{iommu_group(device.spec)}"
    memory = Memory()
    for _ in range(2):
        memory.give(device)
        master(device)
        assert memory.round_trip(device, b"session") == b"session"
        device.close()  # unmaps as well, when teardown did not
        device.close()
        kept = open_files()
        assert sorted(kept.values()) == sorted(["/dev/vfio/vfio", node])
        assert kept.items() <= opened.items()
        assert not device.bars and not device.resettable and device.unmap_dma() == 0
        try:
            os.open(node, os.O_RDWR)
        except OSError as error:
            assert error.errno == errno.EBUSY
        else:
            raise AssertionError("the group was let go of")
        assert "vfio" not in Path("/proc/self/maps").read_text()
        device.acquire()
    device.shutdown()
    device.shutdown()
    assert not open_files()
    os.close(os.open(node, os.O_RDWR))


def check_buffer_kept_over_close() -> None:
    """A buffer of a mapped area that outlives close is an error that names the device; the rest is closed."""
    device = VfioDevice(edus()[0], EDU, VfioHost())
    device.acquire()
    kept = register(device, ID, ctypes.c_uint32)
    assert code(device.close) is Error.BUSY
    assert kept.value == 0x010000ED
    del kept
    device.acquire()
    device.shutdown()
    assert not open_files()


@clause("BAR-4")
def check_io_bar() -> None:
    """An I/O BAR is reached by file offset in 1, 2 and 4 octets, never 8; pci-testdev tells the name of its test."""
    with acquired(only(TESTDEV), TESTDEV) as device:
        print([(bar.index, bar.size, bar.flags) for bar in device.bars])
        bar = bar_of(device, 1)
        assert (bar.size, bar.flags) == (0x100, BarFlag.IO)
        assert bar.areas == (Area(0, 0x100, AreaKind.OWNER, 7),)
        assert [area.kind for area in bar_of(device, 0).areas] == [AreaKind.MAPPED]
        device.bar_write(1, 0, 1, 1)  # the number of the test, whose header the BAR shows from now on
        octets = bytes(device.bar_read(1, 16 + at, 1) for at in range(8))
        print(octets)
        assert octets.startswith(b"portio-")
        assert device.bar_read(1, 16, 4) == int.from_bytes(octets[:4], "little")
        assert device.bar_read(1, 16, 2) == int.from_bytes(octets[:2], "little")
        assert code(device.bar_read, 1, 0, 8) is Error.BAD_SIZE
        assert code(device.bar_read, 1, 0x100, 1) is Error.INVALID_OFFSET


def check_ram_bar() -> None:
    """ivshmem's BAR 2 is RAM: what is stored through the mapping is read by file offset, and the other way round."""
    with acquired(only(IVSHMEM), IVSHMEM) as device:
        print([(bar.index, bar.size, bar.flags) for bar in device.bars])
        assert bar_of(device, 0).size < mmap.PAGESIZE
        assert [area[2:4] for area in bar_of(device, 0).areas] == [(AreaKind.OWNER, 7)]
        bar = bar_of(device, 2)
        assert (bar.size, bar.flags) == (4 << 20, BarFlag.MEM64 | BarFlag.PREFETCHABLE)
        (area,) = bar.areas
        assert area.mapping is not None
        ctypes.c_uint64.from_buffer(area.mapping, 0x1000).value = 0x1122334455667788
        assert device.bar_read(2, 0x1000, 4) == 0x55667788
        assert device.bar_read(2, 0x1006, 2) == 0x1122
        device.bar_write(2, bar.size - 1, 1, 0xA5)
        assert area.mapping[-1] == 0xA5
        assert device.vectors == 0
        assert code(device.enable_msi, [eventfd()]) is Error.TOO_MANY_VECTORS
