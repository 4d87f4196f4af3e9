# SPDX-License-Identifier: MIT
"""What checks of the device seam on real VFIO share: acquired functions, edu's registers, DMA memory, refusals."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pcisplit.back.devices.device import AreaKind, BarInfo, Function
from pcisplit.back.devices.vfio.device import VfioDevice, VfioHost
from pcisplit.back.devices.vfio.function import VfioFunction
from pcisplit.back.host.dma import create_memory
from pcisplit.pci import COMMAND, COMMAND_MASTER, Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

from .check import bind_vfio, dmesg, find_device, wait_until

EDU, IVSHMEM, TESTDEV, NVME = (0x1234, 0x11E8), (0x1AF4, 0x1110), (0x1B36, 0x0005), (0x1B36, 0x0010)
XHCI, E1000E = (0x1033, 0x0194), (0x8086, 0x10D3)

# Registers of edu, in octets: https://www.qemu.org/docs/master/specs/edu.html
ID, LIVENESS, RAISE, ACKNOWLEDGE = 0x00, 0x04, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
DMA_START, DMA_TO_MEMORY = 1 << 0, 1 << 1
EDU_BUFFER = 0x40000

WINDOW = 0x200000  # octets, and the first IOVA at which tests map; below edu's 28 bits
SECONDS = 10.0  # for what takes 100 ms; the guest is emulated
QUIET = 0.3  # for what must not come


def bind_all() -> None:
    """Gives all devices that checks know to vfio-pci."""
    for identity in (EDU, IVSHMEM, TESTDEV, NVME, XHCI, E1000E):
        for name in find_device(*identity):
            bind_vfio(name)


def edus() -> list[Bdf]:
    """All edu functions, in the order of their addresses."""
    return [Bdf.parse(name) for name in find_device(*EDU)]


def only(identity: tuple[int, int]) -> Bdf:
    (name,) = find_device(*identity)
    return Bdf.parse(name)


@contextmanager
def acquired(
    bdf: Bdf, expect_id: tuple[int, int] | None = None, host: VfioHost | None = None, reset: str = ""
) -> Iterator[VfioFunction]:
    device = VfioDevice(bdf, expect_id, host or VfioHost(), reset)
    try:
        yield device.acquire()
    finally:
        device.shutdown()


def bar_of(function: Function, index: int) -> BarInfo:
    (found,) = [bar for bar in function.bars if bar.index == index]
    return found


def register(
    function: Function, offset: int, kind: type[ctypes.c_uint32] | type[ctypes.c_uint64]
) -> ctypes.c_uint32 | ctypes.c_uint64:
    """A register in the mapped part of BAR 0. It keeps the mapping from being closed: do not keep it."""
    area = next(area for area in bar_of(function, 0).areas if area.start <= offset < area.end)
    assert area.kind is AreaKind.MAPPED and area.mapping is not None, area
    return kind.from_buffer(area.mapping, offset - area.start)


def load(function: Function, offset: int) -> int:
    return register(function, offset, ctypes.c_uint32).value


def store(function: Function, offset: int, value: int) -> None:
    register(function, offset, ctypes.c_uint32).value = value


def master(function: Function, on: bool = True) -> None:
    command = function.config_read(COMMAND, 2)
    function.config_write(COMMAND, 2, command | COMMAND_MASTER if on else command & ~COMMAND_MASTER)


def start_dma(function: Function, source: int, destination: int, count: int, command: int) -> None:
    """Begin a transfer of edu, which does it 100 ms later."""
    for offset, value in ((DMA_SOURCE, source), (DMA_DESTINATION, destination), (DMA_COUNT, count)):
        register(function, offset, ctypes.c_uint64).value = value
    register(function, DMA_COMMAND, ctypes.c_uint64).value = DMA_START | command


def dma_running(function: Function) -> bool:
    return bool(load(function, DMA_COMMAND) & DMA_START)


def dma(function: Function, source: int, destination: int, count: int, command: int) -> None:
    """One transfer of edu, to its end."""
    start_dma(function, source, destination, count, command)
    wait_until(lambda: not dma_running(function), SECONDS, "the end of edu's DMA")


class Memory:
    """DMA memory of a session: a memfd and its mapping here."""

    def __init__(self, size: int = WINDOW) -> None:
        self.fd, _ = create_memory(size)
        self.size = size
        self.octets = mmap.mmap(self.fd, size)

    def give(self, function: Function, iova: int = WINDOW) -> None:
        function.map_dma(self.fd, self.size, iova)

    def round_trip(self, function: Function, message: bytes, iova: int = WINDOW) -> bytes:
        """What comes back after the device has fetched a message from the memory and put it a page further on."""
        self.octets[0 : len(message)] = message
        dma(function, iova, EDU_BUFFER, len(message), 0)
        dma(function, EDU_BUFFER, iova + mmap.PAGESIZE, len(message), DMA_TO_MEMORY)
        return self.octets[mmap.PAGESIZE : mmap.PAGESIZE + len(message)]


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def signalled(fd: int, seconds: float = SECONDS) -> int:
    """The count of an eventfd, 0 if nothing comes in time."""
    return os.eventfd_read(fd) if select.select([fd], [], [], seconds)[0] else 0


def refusal(bdf: Bdf, expect_id: tuple[int, int] | None = None, reset: str = "") -> str:
    """The sentence with which a device is refused."""
    try:
        with acquired(bdf, expect_id, reset=reset):
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


def faults(since: int) -> list[str]:
    """What the IOMMU has refused: ``DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x200000 ...``."""
    return [line for line in dmesg(since) if "DMAR: [DMA" in line and "fault addr" in line]


def pinned() -> int:
    """Pages that are pinned for DMA on this machine."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")  # what each CPU has counted for itself
    lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(lines["nr_foll_pin_acquired"]) - int(lines["nr_foll_pin_released"])
