# SPDX-License-Identifier: MIT
"""The contract of the device seam: what every implementation keeps, whatever is behind it. For pytest and for the lab."""

import os
from collections.abc import Callable

from pcisplit import pci
from pcisplit.back.devices.device import Area, AreaKind, Device, Function
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import BarFlag, Error, ResetMethod, VectorType

IOVA, SIZE = 0x400000, 1 << 21  # of the DMA memory; below edu's 28 bits


def check_device(make: Callable[[], Device]) -> None:
    """Run the contract over a device that `make` makes, twice: a second session has to find what the first did.

    AssertionError with what it does not keep.
    """
    device = make()
    assert device.spec and device.group, "a device has a spec and a group before it is acquired"
    spec, group = device.spec, device.group
    for _ in range(2):
        function = device.acquire()
        try:
            assert (function.spec, device.spec, device.group) == (spec, spec, group)
            assert code(device.acquire) is Error.BUSY, "one function at a time"
            check_shape(function)
            check_config(function)
            check_interrupts(function)
            check_reset(function)
            check_dma(function)
            check_what_is_not_built(function)
            assert set(function.events()) <= {"req", "err"}
            assert all(os.fstat(fd) for fd in function.events().values())
            function.config_write(pci.COMMAND, 2, command(function) | pci.COMMAND_MASTER)  # the next must not find it
        finally:
            function.close()
        function.close()
    other = make()
    assert other.spec == spec
    other.shutdown()
    device.shutdown()
    device.shutdown()


def check_shape(function: Function) -> None:
    """What a function says of itself is sound."""
    assert function.config_size in (pci.CONFIG_SIZE, pci.CONFIG_SIZE_EXTENDED)
    assert function.rom >= 0 and min(function.interrupts) >= 0
    assert function.interrupts.intx <= 1 and function.interrupts.msi <= 32 and function.interrupts.msix <= 2048
    assert len(set(function.reset_methods)) == len(function.reset_methods)
    assert 21 <= function.dma_bits <= 64
    assert function.iova_ranges and all(one.first <= one.last for one in function.iova_ranges)
    numbers = [bar.index for bar in function.bars]
    assert numbers == sorted(set(numbers)) and set(numbers) <= set(range(pci.BAR_COUNT))
    for bar in function.bars:
        assert bar.size > 0 and bar.areas
        assert all(area.start < area.end for area in bar.areas)
        assert all(one.end <= two.start for one, two in zip(bar.areas, bar.areas[1:], strict=False))
        assert bar.areas[-1].end <= bar.size
        for area in bar.areas:
            check_area(function, bar.index, bool(bar.flags & BarFlag.IO), area)


def check_area(function: Function, bar: int, io: bool, area: Area) -> None:
    """An area says the truth about how it is reached."""
    assert area.widths and not area.widths & ~15
    if area.kind is AreaKind.MAPPED:
        assert not io and area.mapping is not None and len(area.mapping) >= area.end - area.start
        assert area.start % 4096 == area.end % 4096 == 0 or not area.grantable
        area.mapping[area.end - area.start - 1]
    elif area.kind is AreaKind.OWNER:
        assert not io or not area.widths & 8
        assert not area.grantable and area.mapping is None
        width = max(width for width in (1, 2, 4) if area.widths & width)
        value = function.bar_read(bar, area.start, width)
        assert 0 <= value < 1 << 8 * width
        if area.fd >= 0:
            assert len(os.pread(area.fd, width, area.position)) == width
    else:
        assert not area.grantable and area.mapping is None and area.fd < 0


def check_config(function: Function) -> None:
    """Configuration space is byte-exact in every width; MASTER is off and can be put on and off."""
    for width in (1, 2, 4):
        octets = function.config_read(pci.VENDOR_ID, 4).to_bytes(4, "little")
        read = b"".join(function.config_read(at, width).to_bytes(width, "little") for at in range(0, 4, width))
        assert read == octets
    function.config_read(function.config_size - 4, 4)
    assert not command(function) & pci.COMMAND_MASTER, "MASTER is off when just acquired"
    function.config_write(pci.COMMAND, 2, command(function) | pci.COMMAND_MASTER)
    assert command(function) & pci.COMMAND_MASTER
    function.config_write(pci.COMMAND, 2, command(function) & ~pci.COMMAND_MASTER)
    assert not command(function) & pci.COMMAND_MASTER


def check_interrupts(function: Function) -> None:
    """Counts are kept; enabling again replaces; no kinds beside each other; INTx is nobody's; disabling twice is well."""
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)]
    try:
        for kind in VectorType:
            function.irq_set(kind, 0, ())
        assert code(function.irq_set, VectorType.INTX, 0, fds[:1]) in (Error.NOT_IMPLEMENTED, Error.TOO_MANY_VECTORS)
        for kind, other in ((VectorType.MSI, VectorType.MSIX), (VectorType.MSIX, VectorType.MSI)):
            has = function.interrupts[kind]
            assert code(function.irq_set, kind, has, fds[:1]) is Error.TOO_MANY_VECTORS
            assert code(function.irq_set, kind, 0, [fds[0]] * (has + 1)) is Error.TOO_MANY_VECTORS
            assert code(function.irq_set, kind, -1, fds[:1]) is Error.TOO_MANY_VECTORS
            if not has:
                continue
            function.irq_set(kind, 0, fds[:1])
            function.irq_set(kind, 0, fds[1:2])
            if has > 1:
                function.irq_set(kind, 1, fds[2:3])
                function.irq_set(kind, 0, [-1])
            if function.interrupts[other]:
                assert code(function.irq_set, other, 0, fds[:1]) is Error.BUSY
            function.irq_set(kind, 0, ())
            function.irq_set(kind, 0, ())
    finally:
        for fd in fds:
            os.close(fd)


def check_reset(function: Function) -> None:
    """Every method that it lists, and no other, resets it into the state of one just acquired."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    for absent in set(ResetMethod) - set(function.reset_methods):
        assert code(function.reset, absent) is Error.NO_RESET
    if not function.reset_methods:
        assert code(function.reset) is Error.NO_RESET
    for method in (*function.reset_methods, None):
        if not function.reset_methods:
            break
        fresh = command(function)
        function.config_write(pci.COMMAND, 2, fresh | pci.COMMAND_MASTER)
        if function.interrupts.msi:
            function.irq_set(VectorType.MSI, 0, [fd])
        used = function.reset(method)
        assert used is method or (method is None and used in function.reset_methods)
        assert command(function) == fresh
        if function.interrupts.msix:  # and so the other kind is off
            function.irq_set(VectorType.MSIX, 0, [fd])
            function.irq_set(VectorType.MSIX, 0, ())
    os.close(fd)


def check_dma(function: Function) -> None:
    """What was mapped is unmapped, all of it, once; and can be mapped again."""
    memory = os.memfd_create("contract", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, SIZE)
        assert function.unmap_dma() == 0
        for _ in range(2):
            function.map_dma(memory, SIZE, IOVA)
            function.map_dma(memory, SIZE, IOVA + 2 * SIZE)
            assert function.unmap_dma() == 2 * SIZE
            assert function.unmap_dma() == 0
    finally:
        os.close(memory)


def check_what_is_not_built(function: Function) -> None:
    """Says so, and does nothing."""
    for call in (
        lambda: function.irq_mask(VectorType.MSI, 0, 1, True),
        lambda: function.power(3),
        lambda: function.grant(0, 0, 4096),
    ):
        assert code(call) is Error.NOT_IMPLEMENTED


def command(function: Function) -> int:
    return function.config_read(pci.COMMAND, 2)


def code(call: Callable[..., object], *arguments: object) -> Error:
    """The code of the DeviceError that a call raises."""
    try:
        result = call(*arguments)
    except DeviceError as error:
        assert str(error)
        return error.code
    raise AssertionError(f"{call}{arguments} gave {result!r}")
