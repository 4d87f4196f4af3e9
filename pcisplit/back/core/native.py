# SPDX-License-Identifier: MIT
"""The C core as the backend sees it: a device's tables and owner, a session's serve loop. Raw cdata stays here."""

import mmap
from typing import Any

from pcisplit import wire
from pcisplit._core import ffi, lib
from pcisplit.back.devices.device import AreaKind, BarInfo
from pcisplit.back.policy.compile import Rule, Tables
from pcisplit.messages import Request
from pcisplit.wire import BarFlag, DeviceState, Error, Feature, State

STOPPED, FRONT_STATE, ENDED = lib.PCS_STOPPED, lib.PCS_FRONT_STATE, lib.PCS_ENDED


def prefault(memory: mmap.mmap) -> bool:
    """Touch every page of `memory`; False if one cannot be had. A page that is there can still be taken away."""
    with ffi.from_buffer("uint8_t[]", memory) as view:
        return not lib.pcs_prefault(view, len(memory))


def guarded_read(memory: mmap.mmap | memoryview, offset: int, length: int) -> bytes | None:
    """`length` octets of shared memory, copied without the GIL, or None if they are gone. ValueError outside of it."""
    octets = ffi.new("uint8_t[]", length)
    return bytes(ffi.buffer(octets)) if _copy(octets, memory, offset, length, False) else None


def guarded_write(memory: mmap.mmap | memoryview, offset: int, data: bytes) -> bool:
    """Copy `data` to shared memory; False if it is gone, when a part may have been copied. ValueError outside of it."""
    return _copy(ffi.from_buffer(data), memory, offset, len(data), True)


def _copy(private: Any, memory: mmap.mmap | memoryview, offset: int, length: int, to_shared: bool) -> bool:
    if offset < 0:
        raise ValueError(f"offset {offset} of shared memory")
    with ffi.from_buffer("uint8_t[]", memory) as view:
        error = lib.pcs_guarded_copy(private, view, len(memory), offset, length, to_shared)
    if error == Error.INVALID_OFFSET:
        raise ValueError(f"{length} octets at {offset:#x} of {len(memory):#x} octets of shared memory")
    return not error


class CoreDevice:
    """One ``struct pcs_device``: filled in before the loop starts, then driven by the owner."""

    def __init__(self) -> None:
        self.raw: Any = lib.pcs_device_new()
        if self.raw == ffi.NULL:
            raise MemoryError("no memory for a device")
        self._views: list[Any] = []

    def free(self) -> None:
        """Free it and let go of the mappings; no loop may use it any more. Idempotent."""
        if self.raw != ffi.NULL:
            lib.pcs_device_free(self.raw)
            self.raw = ffi.NULL
            for view in self._views:
                ffi.release(view)

    # -- set-up -----------------------------------------------------------------------------------------------

    def set_config(self, tables: Tables, vectors: int) -> None:
        order = (
            tables.value,
            tables.from_device,
            tables.write,
            tables.to_device,
            tables.quiet,
            tables.zero,
            tables.rule,
        )
        for which, table in enumerate(order):
            ffi.memmove(lib.pcs_device_table(self.raw, which), table, len(table))
        lib.pcs_device_shape(self.raw, len(tables.value), vectors)

    def restore_config(self, tables: Tables) -> None:
        """Virtual values as just acquired; while the device is parked."""
        ffi.memmove(lib.pcs_device_table(self.raw, 0), tables.value, len(tables.value))

    def add_bar(self, bar: BarInfo) -> None:
        lib.pcs_device_bar(self.raw, bar.index, bar.size, bool(bar.flags & BarFlag.IO))
        for area in bar.areas:
            base = ffi.NULL
            if area.kind is AreaKind.MAPPED and area.mapping is not None:
                view = ffi.from_buffer("uint8_t[]", area.mapping)
                self._views.append(view)
                base = view
            if lib.pcs_device_add_area(
                self.raw, bar.index, area.start, area.end, area.kind, area.widths, base, area.read_ns, area.write_ns
            ):
                raise ValueError(f"BAR {bar.index} has more areas than the backend takes")

    def set_vector(self, vector: int, fd: int) -> None:
        lib.pcs_device_vector(self.raw, vector, fd)

    # -- while it runs ----------------------------------------------------------------------------------------

    def set_state(self, state: DeviceState, generation: int) -> None:
        lib.pcs_device_set(self.raw, state, generation)

    def enable_vector(self, vector: int, on: bool) -> None:
        lib.pcs_device_enable(self.raw, vector, on)

    def config_value(self, offset: int, width: int) -> int:
        """What the virtual configuration space holds."""
        return int.from_bytes(ffi.buffer(lib.pcs_device_table(self.raw, 0) + offset, width)[:], "little")

    def config_is_virtual(self, offset: int) -> bool:
        return bool(lib.pcs_device_table(self.raw, 1)[offset] == 0)

    def config_apply(self, offset: int, width: int, value: int) -> None:
        lib.pcs_device_config_apply(self.raw, offset, width, value)

    def area_kind(self, bar: int, offset: int, width: int) -> AreaKind:
        return AreaKind(lib.pcs_device_area(self.raw, bar, offset, width))

    def mapped(self, bar: int, offset: int, width: int, value: int | None = None) -> tuple[Error, int]:
        """One access to a MAPPED area: a read if `value` is None. Returns the error and the value."""
        cell = ffi.new("uint64_t *", value or 0)
        error = lib.pcs_device_mapped(self.raw, bar, offset, width, value is not None, cell)
        return Error(error), int(cell[0])

    def refusals(self) -> dict[Rule, int]:
        """Refused configuration writes, by rule [CFG-5]."""
        counts = {rule: int(lib.pcs_device_hits(self.raw, rule)) for rule in Rule}
        return {rule: count for rule, count in counts.items() if count}

    # -- the owner ---------------------------------------------------------------------------------------------

    def owner_wait(self) -> Request | None:
        """The next request for the owner, or None when it was stopped. Blocks without the GIL."""
        if not lib.pcs_owner_wait(self.raw):
            return None
        return Request.from_bytes_untrusted(bytes(ffi.buffer(lib.pcs_owner_request(self.raw), wire.SLOT_SIZE)))

    def owner_finish(self, error: Error, rule: int = 0, value: int = 0, detail: int = 0, length: int = 0) -> None:
        lib.pcs_owner_finish(self.raw, error, rule, value, detail, length)

    def owner_stop(self) -> None:
        lib.pcs_owner_stop(self.raw)


class CoreServe:
    """One ``struct pcs_serve``. `offsets`: of requests, responses, events, bulk-in, bulk-out."""

    def __init__(self, f2b: mmap.mmap, b2f: mmap.mmap, offsets: tuple[int, ...], kick: int, pipe: int) -> None:
        if not (prefault(f2b) and prefault(b2f)):
            raise MemoryError("no memory for the shared regions of another session")
        self._views = [ffi.from_buffer("uint8_t[]", f2b), ffi.from_buffer("uint8_t[]", b2f)]
        self.raw: Any = lib.pcs_serve_new(*self._views, ffi.new("uint64_t[]", offsets), kick, pipe)
        if self.raw == ffi.NULL:
            raise OSError("no epoll, eventfd or memory for another session: raise the limit of open files (ulimit -n)")

    def free(self) -> None:
        """Idempotent; the loop must have come back."""
        if self.raw != ffi.NULL:
            lib.pcs_serve_free(self.raw)
            self.raw = ffi.NULL
            for view in self._views:
                ffi.release(view)

    def add(self, device: CoreDevice, state_offset: int) -> None:
        if lib.pcs_serve_add(self.raw, device.raw, state_offset):
            raise ValueError("the session has more devices, mapped areas or vectors than it takes")

    def configure(self, spin: float, features: Feature) -> None:
        """`spin`: seconds to look for work before sleeping; `features`: those in force."""
        lib.pcs_serve_spin(self.raw, int(spin * 1e9))
        lib.pcs_serve_features(self.raw, features)

    def run(self) -> int:
        """STOPPED, FRONT_STATE or ENDED. Blocks without the GIL."""
        return int(lib.pcs_serve_run(self.raw))

    def stop(self) -> None:
        """Make ``run`` come back, from any thread."""
        if self.raw != ffi.NULL:
            lib.pcs_serve_stop(self.raw)

    def set_state(self, state: State) -> None:
        lib.pcs_serve_set_state(self.raw, state)

    def set_reason(self, reason: Error) -> None:
        lib.pcs_serve_end(self.raw, reason)

    @property
    def front_state(self) -> int:
        return int(lib.pcs_serve_front_state(self.raw))

    @property
    def reason(self) -> Error:
        return Error(lib.pcs_serve_reason(self.raw))
