# SPDX-License-Identifier: MIT
"""VfioDevice on real VFIO: what is refused and how to mend it, configuration space, BARs of every kind, the contract."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

from pcisplit.back.devices.device import AreaKind
from pcisplit.back.devices.vfio.device import VfioDevice, VfioHost
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
from pcisplit.wire import BarFlag, Error, VectorType
from tests.device_contract import check_device

from .check import bind_vfio, clause, iommu_group, wait_until
from .vfio import (
    EDU,
    ID,
    IVSHMEM,
    LIVENESS,
    NVME,
    SECONDS,
    TESTDEV,
    acquired,
    bar_of,
    bind_all,
    code,
    edus,
    eventfd,
    follow,
    load,
    only,
    open_files,
    refusal,
    register,
    store,
    unbind,
)

DEVICES = [
    "edu,addr=0x10",
    "-object memory-backend-ram,id=ram,size=4M,share=on",
    "ivshmem-plain,memdev=ram,addr=0x12",
    "pci-testdev,addr=0x13",
    "-drive if=none,id=disk,file=null-co://,format=raw",
    "nvme,drive=disk,serial=lab,addr=0x14",
]


def setup() -> None:
    """Gives all devices to vfio-pci for all checks."""
    bind_all()


def check_identity() -> None:
    """edu's identification register, through the mapped area; its one BAR; its configuration space."""
    with acquired(edus()[0], EDU) as function:
        print(function.describe())
        assert VfioDevice(edus()[0], EDU, VfioHost()).group == f"iommu-group-{iommu_group(function.spec)}"
        (bar,) = function.bars
        assert (bar.index, bar.size, bar.flags) == (0, 1 << 20, BarFlag(0))
        assert [area[:4] for area in bar.areas] == [(0, 1 << 20, AreaKind.MAPPED, 15)]
        assert load(function, ID) == 0x010000ED
        store(function, LIVENESS, 0x12345678)
        assert load(function, LIVENESS) == 0xEDCBA987
        assert function.bar_read(0, LIVENESS, 4) == 0xEDCBA987
        assert (function.config_size, function.interrupts, function.rom) == (256, (1, 1, 0), 0)
        assert (function.dma_bits, function.reset_methods) == (64, ())
        assert set(function.events()) == {"req"}


def check_config() -> None:
    """Reads of every width; writes; what does not fit is refused and never reaches the next region of the file."""
    with acquired(edus()[0]) as function:
        assert function.config_read(VENDOR_ID, 4) == EDU[1] << 16 | EDU[0]
        assert function.config_read(VENDOR_ID, 2) == EDU[0]
        assert function.config_read(VENDOR_ID + 1, 1) == EDU[0] >> 8
        function.config_write(0x3C, 1, 0x5A)
        assert function.config_read(0x3C, 1) == 0x5A
        assert code(function.config_read, 256, 1) is Error.INVALID_OFFSET
        assert code(function.config_read, 254, 4) is Error.INVALID_OFFSET
        assert code(function.config_read, -4, 4) is Error.INVALID_OFFSET
        assert code(function.config_read, 0, 8) is Error.BAD_SIZE
        assert code(function.config_write, 0x3C, 1, 0x100) is Error.BAD_REQUEST
        assert code(function.bar_read, 0, 1 << 20, 1) is Error.INVALID_OFFSET
        assert code(function.bar_read, 1, 0, 1) is Error.INVALID_OFFSET
        assert code(function.bar_read, 0, 0, 8) is Error.BAD_SIZE


def check_command_when_acquired() -> None:
    """Decode is on as the BARs need it, MASTER off, INTx disabled; in a second session as well."""
    for bdf, decode in ((edus()[0], COMMAND_MEM), (only(TESTDEV), COMMAND_MEM | COMMAND_IO)):
        host = VfioHost()
        for _ in range(2):
            with acquired(bdf, host=host) as function:
                command = function.config_read(COMMAND, 2)
                assert command & 0x407 == decode | COMMAND_INTX_DISABLE, hex(command)
                function.config_write(COMMAND, 2, COMMAND_MASTER)


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


@clause("BAR-5")
def check_nvme_msix_carved() -> None:
    """No mapped area overlaps the pages of NVMe's MSI-X table or pending bits; their octets are denied exactly."""
    with acquired(only(NVME), NVME) as function:
        assert (function.config_size, function.interrupts) == (4096, (1, 0, 65))
        assert set(function.events()) == {"req", "err"}
        (bar,) = function.bars
        for area in bar.areas:
            print(hex(area.start), hex(area.end), area.kind.name, area.widths)
        assert bar.flags == BarFlag.MEM64
        assert [bar.areas[0].start, *(area.end for area in bar.areas)] == [
            *(area.start for area in bar.areas),
            bar.size,
        ]
        config = b"".join(function.config_read(offset, 4).to_bytes(4, "little") for offset in range(0, 256, 4))
        capability = find_capability(config, CAP_MSIX)
        assert capability is not None
        vectors = (function.config_read(capability + 2, 2) & 0x7FF) + 1
        table, pending = (function.config_read(capability + at, 4) for at in (4, 8))
        assert table & 7 == pending & 7 == 0
        denied = [area[:2] for area in bar.areas if area.kind is AreaKind.DENIED]
        assert denied == [(table, table + 16 * vectors), (pending, pending + (vectors + 63) // 64 * 8)]
        for start, end in denied:
            first, last = start // mmap.PAGESIZE, (end - 1) // mmap.PAGESIZE
            for area in bar.areas:
                pages = range(area.start // mmap.PAGESIZE, -(-area.end // mmap.PAGESIZE))
                assert area.kind is not AreaKind.MAPPED or not {first, last} & set(pages), area
        assert code(function.bar_read, 0, table, 4) is Error.DENIED
        assert code(function.bar_write, 0, table - 2, 4, 0) is Error.DENIED
        owner = next(area for area in bar.areas if area.kind is AreaKind.OWNER)
        assert function.bar_read(0, owner.start, 4) >= 0
        assert load(function, 8) == function.bar_read(0, 8, 4) == 0x00010400  # VS: NVMe 1.4


@clause("BAR-4")
def check_io_bar() -> None:
    """An I/O BAR is reached by file offset in 1, 2 and 4 octets, never 8; pci-testdev tells the name of its test."""
    with acquired(only(TESTDEV), TESTDEV) as function:
        print([(bar.index, bar.size, bar.flags) for bar in function.bars])
        bar = bar_of(function, 1)
        assert (bar.size, bar.flags) == (0x100, BarFlag.IO)
        (area,) = bar.areas
        assert area[:4] == (0, 0x100, AreaKind.OWNER, 7) and not area.grantable
        assert [area.kind for area in bar_of(function, 0).areas] == [AreaKind.MAPPED]
        function.bar_write(1, 0, 1, 1)  # the number of the test, whose header the BAR shows from now on
        octets = bytes(function.bar_read(1, 16 + at, 1) for at in range(8))
        print(octets)
        assert octets.startswith(b"portio-")
        assert function.bar_read(1, 16, 4) == int.from_bytes(octets[:4], "little")
        assert function.bar_read(1, 16, 2) == int.from_bytes(octets[:2], "little")
        assert code(function.bar_read, 1, 0, 8) is Error.BAD_SIZE
        assert code(function.bar_read, 1, 0x100, 1) is Error.INVALID_OFFSET


def check_ram_bar() -> None:
    """ivshmem's BAR 2 is RAM: what is stored through the mapping is read by file offset, and the other way round."""
    with acquired(only(IVSHMEM), IVSHMEM) as function:
        print([(bar.index, bar.size, bar.flags) for bar in function.bars])
        assert bar_of(function, 0).size < mmap.PAGESIZE
        assert [area[2:4] for area in bar_of(function, 0).areas] == [(AreaKind.OWNER, 7)]
        bar = bar_of(function, 2)
        assert (bar.size, bar.flags) == (4 << 20, BarFlag.MEM64 | BarFlag.PREFETCHABLE)
        (area,) = bar.areas
        assert area.mapping is not None
        ctypes.c_uint64.from_buffer(area.mapping, 0x1000).value = 0x1122334455667788
        assert function.bar_read(2, 0x1000, 4) == 0x55667788
        assert function.bar_read(2, 0x1006, 2) == 0x1122
        function.bar_write(2, bar.size - 1, 1, 0xA5)
        assert area.mapping[-1] == 0xA5
        assert not any(function.interrupts)
        assert code(function.irq_set, VectorType.MSI, 0, [eventfd()]) is Error.TOO_MANY_VECTORS


def check_buffer_kept_over_close() -> None:
    """A buffer of a mapped area that outlives close is an error that names the device, and there is no next session."""
    device = VfioDevice(edus()[0], EDU, VfioHost())
    function = device.acquire()
    kept = register(function, ID, ctypes.c_uint32)
    assert code(function.close) is Error.BUSY
    assert kept.value == 0x010000ED
    assert code(device.acquire) is Error.BUSY
    del kept
    device.acquire().close()
    device.shutdown()
    assert not open_files()


def check_contract_of_edu() -> None:
    """The contract of the device seam: no reset, one MSI."""
    check_device(lambda: VfioDevice(edus()[0], EDU, VfioHost()))
    assert not open_files()


def check_contract_of_ivshmem() -> None:
    """The contract of the device seam: memory, no interrupts."""
    check_device(lambda: VfioDevice(only(IVSHMEM), IVSHMEM, VfioHost()))


def check_contract_of_nvme() -> None:
    """The contract of the device seam: resets, MSI-X."""
    check_device(lambda: VfioDevice(only(NVME), NVME, VfioHost()))


def check_contract_of_ports() -> None:
    """The contract of the device seam: I/O BARs."""
    check_device(lambda: VfioDevice(only(TESTDEV), TESTDEV, VfioHost()))
