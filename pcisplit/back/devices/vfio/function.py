# SPDX-License-Identifier: MIT
"""A PCI function that the backend drives through VFIO: the device seam's only way to hardware.

Made by ``acquire``, in the keeper, which holds the IOMMU group; or by ``from_description``, in a worker, which has the
device's descriptor and what the keeper found out. The worker drives configuration space, BARs, interrupts and the function's
own reset; for the rest it asks its `Host`. When a worker is dead, the keeper does the safe order with its own `VfioFunction`.

Rules of this file. Decode stays on from acquire to close, so that mapped accesses never fault for want of it; BAR
registers are VFIO's own and never written. A denied config write returns success (drivers/vfio/pci/vfio_pci_config.c),
so what must be so is read back. Nothing here applies policy, except that the MSI-X table cannot be reached, and that INTx
is never enabled.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol, Self

from pcisplit.back.devices.device import Area, AreaKind, BarInfo, Function, not_built
from pcisplit.back.devices.quiet import interrupts_off
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.describe import BarPlan, Description, Place
from pcisplit.pci import COMMAND, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MASTER, COMMAND_MEM
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error, ResetMethod, VectorType

#: The backend's bits of COMMAND; the others keep the values that the firmware and the kernel gave them.
OURS = COMMAND_IO | COMMAND_MEM | COMMAND_MASTER | COMMAND_INTX_DISABLE

#: What a device may signal besides its vectors.
EVENTS = {"err": abi.VFIO_PCI_ERR_IRQ_INDEX, "req": abi.VFIO_PCI_REQ_IRQ_INDEX}

_MAPPED_WIDTHS = 1 | 2 | 4 | 8
# vfio_pci_core_do_io_rw (6.1) makes two accesses of an 8-octet one, and I/O space has no such access at all [BAR-4].
_OWNER_WIDTHS = 1 | 2 | 4


class Host(Protocol):
    """What a function can only do with its group, in the keeper. DeviceError."""

    def hot_reset(self) -> None:
        """Reset the function's bus or slot."""

    def select_reset(self, method: ResetMethod) -> None:
        """Make `method` what VFIO_DEVICE_RESET does to the function."""

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        """As of `Function`."""

    def unmap_dma(self) -> int:
        """As of `Function`."""


class VfioFunction(Function):
    """One PCI function, bound to vfio-pci and open. For what each method does see `Function`."""

    def __init__(self, fd: int, description: Description, host: Host) -> None:
        """`fd`, the device's descriptor, is this object's from now on. Maps nothing: see ``map_bars``."""
        self.description, self.host = description, host
        self._fd = fd
        self._on_close: list[Callable[[], None]] = []
        self._command = description.command
        self._places = {bar.number: bar.place for bar in description.bars}
        self._mappings: list[mmap.mmap] = []
        self._irqs: dict[VectorType, list[int]] = {}  # eventfds by vector, of the kinds that are on here
        self._events: dict[str, int] | None = None
        self._selected = description.resets.kernel[:1]  # by the keeper, when it acquired
        self.spec = description.spec
        self.config_size = description.config.size
        self.rom = description.rom.size
        self.interrupts = description.interrupts
        self.reset_methods = description.resets.methods
        self.dma_bits = 64  # a PCI function does not say how many it has
        self.iova_ranges = description.iova_ranges
        self.bars = tuple(BarInfo(bar.number, bar.place.size, bar.flags, self._areas(bar)) for bar in description.bars)

    @classmethod
    def from_description(cls, fd: int, description: object, host: Host) -> Self:
        """In a worker: `fd` as the keeper sent it, and what ``describe`` gave there, after JSON. ValueError."""
        return cls(fd, Description.from_json(description), host)

    def describe(self) -> dict[str, object]:
        """What ``from_description`` takes, for ``json.dumps``."""
        return self.description.to_json()

    def fileno(self) -> int:
        """The device's descriptor, to be sent to a worker; -1 when it is closed."""
        return self._fd

    # -- BARs -------------------------------------------------------------------------------------------------

    def map_bars(self) -> None:
        """Map what of the BARs can be mapped; `bars` has the mappings from now on. OSError. Never in a keeper."""
        self.bars = tuple(
            BarInfo(bar.index, bar.size, bar.flags, tuple(self._mapped(area) for area in bar.areas))
            for bar in self.bars
        )

    def _areas(self, bar: BarPlan) -> tuple[Area, ...]:
        return tuple(
            Area(
                start,
                end,
                kind,
                _MAPPED_WIDTHS if kind is AreaKind.MAPPED else _OWNER_WIDTHS,
                fd=-1 if kind is AreaKind.DENIED else self._fd,
                position=0 if kind is AreaKind.DENIED else bar.place.offset + start,
                grantable=kind is AreaKind.MAPPED,
            )
            for start, end, kind in bar.areas
        )

    def _mapped(self, area: Area) -> Area:
        if area.kind is not AreaKind.MAPPED or area.mapping is not None:
            return area
        mapping = mmap.mmap(area.fd, area.end - area.start, offset=area.position)
        self._mappings.append(mapping)
        return area._replace(mapping=mapping)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        return self._read(self._bar_position(bar, offset, width), width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self._write(self._bar_position(bar, offset, width), width, value)

    def _bar_position(self, index: int, offset: int, width: int) -> int:
        position = self._position(f"BAR {index}", self._places.get(index, Place(0, 0)), offset, width)
        for bar in self.bars:
            for area in bar.areas if bar.index == index else ():
                # The kernel would read ones and drop writes, and say that all went well.
                if area.kind is AreaKind.DENIED and area.start < offset + width and offset < area.end:
                    raise DeviceError(Error.DENIED, f"{self.spec}: BAR {index} has its MSI-X table at {offset:#x}")
        return position

    def grant(self, bar: int, offset: int, length: int) -> NoReturn:
        raise not_built(self.spec, f"a grant of {length:#x} octets at {offset:#x} of BAR {bar}")

    # -- configuration space ----------------------------------------------------------------------------------

    def config_read(self, offset: int, width: int) -> int:
        return self._read(self._position("config", self.description.config, offset, width), width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        self._write(self._position("config", self.description.config, offset, width), width, value)

    def settle(self) -> None:
        """Decode on, MASTER and INTx off: the state of a function just acquired."""
        self.config_write(COMMAND, 2, self._command)
        found = self.config_read(COMMAND, 2)
        if (found ^ self._command) & OURS:
            raise DeviceError(Error.OP_FAILED, f"{self.spec}: COMMAND is {found:#06x} and not {self._command:#06x}")

    def quiesce(self) -> None:
        """MASTER off, then every kind of interrupt."""
        self.settle()
        interrupts_off(self)

    def _position(self, name: str, place: Place, offset: int, width: int) -> int:
        """Where in the device's file an access lies: out of its own region it would reach into the next."""
        if self._fd < 0:
            raise DeviceError(Error.GONE, f"{self.spec}: is closed")
        if width not in (1, 2, 4):
            raise DeviceError(Error.BAD_SIZE, f"{self.spec}: no access of {width} octets by file offset")
        if not 0 <= offset <= place.size - width:
            raise DeviceError(Error.INVALID_OFFSET, f"{self.spec}: {name} has no {width} octets at {offset:#x}")
        return place.offset + offset

    def _read(self, position: int, width: int) -> int:
        try:
            octets = os.pread(self._fd, width, position)
        except OSError as error:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a read failed: {error.strerror}") from error
        if len(octets) != width:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a read gave {len(octets)} of {width} octets")
        return int.from_bytes(octets, "little")

    def _write(self, position: int, width: int, value: int) -> None:
        if not 0 <= value < 1 << 8 * width:
            raise DeviceError(Error.BAD_REQUEST, f"{self.spec}: {value:#x} does not fit into {width} octets")
        try:
            written = os.pwrite(self._fd, value.to_bytes(width, "little"), position)
        except OSError as error:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a write failed: {error.strerror}") from error
        if written != width:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a write took {written} of {width} octets")

    # -- interrupts and events --------------------------------------------------------------------------------

    def irq_set(self, kind: VectorType, start: int, eventfds: Sequence[int]) -> None:
        if not eventfds:
            self._off(kind)
            self._irqs.pop(kind, None)
            return
        if kind is VectorType.INTX:
            raise not_built(self.spec, "INTx")
        last = start + len(eventfds)
        if start < 0 or last > self.interrupts[kind]:
            text = f"{self.spec}: has {self.interrupts[kind]} {kind.name} vectors, not {last}"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
        if any(other is not kind for other in self._irqs):
            raise DeviceError(Error.BUSY, f"{self.spec}: has its other kind of interrupts on")
        on = self._irqs.get(kind, [])
        if last <= len(on):
            self._set_irqs(kind, start, eventfds)
        else:  # as many as there are become enabled once: more of them means all of them anew
            on = on + [-1] * (last - len(on))
            self._off(kind)
            self._irqs.pop(kind, None)  # what follows may fail
            self._set_irqs(kind, 0, [*on[:start], *eventfds])
        on[start:last] = eventfds
        self._irqs[kind] = on

    def irq_mask(self, kind: VectorType, start: int, count: int, masked: bool) -> None:
        raise not_built(self.spec, f"masking {count} {kind.name} vectors from {start} on")

    def _set_irqs(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """VFIO_DEVICE_SET_IRQS; without eventfds it returns after handlers that were running have ended (free_irq).

        A positive answer is the number of vectors that the host would give instead (vfio_msi_enable), and nothing is on.
        """
        data = abi.VFIO_IRQ_SET_DATA_EVENTFD if eventfds else abi.VFIO_IRQ_SET_DATA_NONE
        flags = data | abi.VFIO_IRQ_SET_ACTION_TRIGGER
        request = abi.IrqSet(flags=flags, index=index, start=start, count=len(eventfds))
        gives = self._ioctl(
            "setting its interrupts", abi.VFIO_DEVICE_SET_IRQS, bytearray(abi.with_fds(request, list(eventfds)))
        )
        if gives > 0:
            text = f"{self.spec}: this host gives it {gives} of {len(eventfds)} vectors"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)

    def _off(self, index: int) -> None:
        """Off, whoever put it on: a keeper does not know what its worker did."""
        try:
            self._set_irqs(index, 0, ())
        except DeviceError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
                raise  # and EINVAL means that it was off

    def events(self) -> Mapping[str, int]:
        if self._events is None:
            self._events = {}
            for name in self.description.events:
                fd = self._events[name] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._set_irqs(EVENTS[name], 0, [fd])
        return self._events

    def _close_events(self) -> None:
        for name, fd in (self._events or {}).items():
            with suppress(DeviceError):  # the last descriptor of the device takes them with it
                self._off(EVENTS[name])
            os.close(fd)
        self._events = None

    # -- reset ------------------------------------------------------------------------------------------------

    def reset(self, method: ResetMethod | None = None) -> ResetMethod:
        if not self.reset_methods or method not in (None, *self.reset_methods):
            names = ", ".join(one.name.lower() for one in self.reset_methods) or "none"
            raise DeviceError(Error.NO_RESET, f"{self.spec}: has no such reset; it has {names}")
        self.quiesce()  # the kernel saves COMMAND before the reset and restores it after: MASTER must be off before, too
        failures: list[DeviceError] = []
        for one in (method,) if method else self.reset_methods:
            try:
                self._reset_by(one)
                return one
            except DeviceError as failure:
                failures.append(failure)
            finally:
                self.settle()
        raise DeviceError(failures[0].code, "; ".join(map(str, failures)))

    def _reset_by(self, method: ResetMethod) -> None:
        if method not in self.description.resets.kernel:
            self.host.hot_reset()
            return
        if self._selected != (method,):
            self.select_reset(method)
        self._ioctl(f"its reset by {method.name.lower()}", abi.VFIO_DEVICE_RESET, 0)

    def select_reset(self, method: ResetMethod) -> None:
        """Make `method` what the kernel does when it is told to reset the function. DeviceError."""
        self.host.select_reset(method)
        self._selected = (method,)

    def power(self, state: int) -> None:
        raise not_built(self.spec, f"power state D{state}")

    # -- DMA --------------------------------------------------------------------------------------------------

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        self.host.map_dma(fd, size, iova)

    def unmap_dma(self) -> int:
        return self.host.unmap_dma()

    def on_close(self, follow: Callable[[], None]) -> None:
        """Call `follow` when it is closed, after those that were given before."""
        self._on_close.append(follow)

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close this descriptor of the device, everything off. Idempotent.

        DeviceError (BUSY), after all is closed, if a buffer taken of a mapped area still exists: the pages stay mapped, and
        the group's container with them, until it goes.
        """
        if self._fd < 0:
            return
        for step in (self.settle, lambda: interrupts_off(self)):
            with suppress(DeviceError):  # the kernel does the same when the last descriptor is closed
                step()
        self._close_events()
        in_use = sum(not _unmap(mapping) for mapping in self._mappings)
        self._mappings.clear()
        self.bars = ()
        os.close(self._fd)
        self._fd = -1
        try:
            for follow in self._on_close:
                follow()
        finally:
            if in_use:
                text = f"{self.spec}: {in_use} mapped areas of its BARs are still in use here"
                raise DeviceError(Error.BUSY, text)

    def _ioctl(self, what: str, request: int, argument: bytearray | int) -> int:
        if self._fd < 0:
            raise DeviceError(Error.GONE, f"{self.spec}: is closed")
        try:
            return fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise DeviceError(Error.OP_FAILED, f"{self.spec}: {what} failed: {error.strerror}") from error


def _unmap(mapping: mmap.mmap) -> bool:
    try:
        mapping.close()
    except BufferError:
        return False
    return True
