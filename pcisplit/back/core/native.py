# SPDX-License-Identifier: MIT
"""The C core as the backend sees it: a device's tables and owner, a session's serve loop. Raw cdata stays here."""

import array
import math
import mmap
import struct
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from pcisplit import wire
from pcisplit._core import ffi, lib
from pcisplit.back.core.abi import PLACES, RUN, CoreArea, Run, Table, Wake
from pcisplit.back.devices.device import AreaKind, BarInfo
from pcisplit.back.policy.compile import Tables
from pcisplit.back.policy.header import Rule
from pcisplit.proto.slots import Request
from pcisplit.wire import BUILT_OPERATIONS, BarFlag, DeviceState, Error, Feature, Record, State

BUDGET_NS: int = lib.PCS_SLICE_NS  #: of one turn of an owner, among the owners of its session

_AREA_KINDS = {kind: CoreArea[kind.name] for kind in AreaKind}


class Work(NamedTuple):
    """A request as the owner gets it, checked by C: the fields that its operation can use, and its octets."""

    op: int
    region: int
    width: int
    offset: int
    value: int
    length: int
    elements: tuple[int, ...]
    first: int
    vectors: int
    octets: bytes

    @classmethod
    def of(cls, octets: bytes) -> Self:
        codec, at, elements = _CODECS[int.from_bytes(octets[:2], "little")]
        numbers = (*codec.unpack(octets), 0)  # the last one for fields that the record does not have
        op, region, width, offset, value, length, first, vectors = (numbers[place] for place in at)
        return cls(op, region, width, offset, value, length, numbers[elements], first, vectors, octets)

    def __str__(self) -> str:
        return str(Request.from_bytes_untrusted(self.octets))


_FIELDS = ("op", "region", "width", "offset", "value", "length", "first", "count")


def _codec(record: Record) -> tuple[struct.Struct, tuple[int, ...], slice]:
    """The numbers of a record that ``Work`` has: their struct, where each of _FIELDS is among them, and the elements."""
    codes, names = "<", []
    for field in record.fields:
        wanted = field.name in _FIELDS or field.name == "element"
        codes += f"{field.count or 1}{field.code}" if wanted else f"{field.size}x"
        names += [field.name] * (field.count or 1) if wanted else []
    elements, pack = names.count("element"), "element" in names
    first = names.index("element") if pack else 0
    fields = [name for name in _FIELDS if not (pack and name == "count")]  # those are no vectors
    places = {name: names.index(name) for name in fields if name in names}
    return struct.Struct(codes), tuple(places.get(name, -1) for name in _FIELDS), slice(first, first + elements)


_CODECS = {int(op): _codec(row.request) for op, row in BUILT_OPERATIONS.items()}


class Progress(NamedTuple):
    """How far the owner's request got: octets to move and moved; trapped accesses up to `piece` are Python's to make.

    `error` is what ended it, with its `rule`, and the errno of a file.
    """

    length: int
    done: int
    piece: int
    error: Error
    rule: int
    os_error: int


class Tally(NamedTuple):
    """Numbers of a device: `doing` is the operation the owner is inside of, for `seconds`, or None."""

    doing: int | None = None
    seconds: float = 0.0
    queued: int = 0
    requests: int = 0
    slices: int = 0
    owner_ns: int = 0
    refused: int = 0
    posted_errors: int = 0


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
    """One ``struct pcs_device``: filled in before the loop starts, then driven by the owner.

    Only ``owner_wake``, ``owner_stop``, ``tally`` and ``refusals`` may be called by other threads, at any time.
    """

    def __init__(self) -> None:
        self.raw: Any = lib.pcs_device_new()
        if self.raw == ffi.NULL:
            raise MemoryError("no memory for a device")
        self._views: list[Any] = []
        self._lock = threading.Lock()  # `raw` stays while others look
        self._last: tuple[Tally, dict[Rule, int]] = Tally(), {}
        self._work = lib.pcs_owner_work(self.raw)
        self.owner_data = memoryview(ffi.buffer(lib.pcs_owner_data(self.raw), wire.BLOCK_MAX))

    def free(self) -> None:
        """Free it and let go of the mappings; no loop and no owner may use it any more. Idempotent."""
        if self.raw != ffi.NULL:
            last = self.tally()._replace(doing=None, seconds=0.0), self.refusals()
            with self._lock:
                self._last = last
                self.owner_data.release()
                lib.pcs_device_free(self.raw)
                self.raw = ffi.NULL
            for view in self._views:
                ffi.release(view)

    # -- set-up -----------------------------------------------------------------------------------------------

    def set_config(self, tables: Tables, vectors: int) -> None:
        """Once, before the loop starts."""
        size, rules = len(tables.value), max(*tables.rule, *Rule) + 1
        if not 0 < size <= wire.PAGE_SIZE or min(tables.rule) < 1 or rules > 1 << 16:
            raise ValueError(f"{size} octets of configuration space, rules {min(tables.rule)} to {rules - 1}")
        for number in Table:
            table = array.array("H", tables.rule) if number is Table.RULE else getattr(tables, number.name.lower())
            octets = ffi.from_buffer(table)
            ffi.memmove(lib.pcs_device_table(self.raw, number), octets, len(octets))
        if lib.pcs_device_shape(self.raw, size, vectors, rules):
            raise MemoryError("no memory for the counters of a device")

    def restore_config(self, tables: Tables) -> None:
        """Virtual values as just acquired; while the device is parked."""
        ffi.memmove(lib.pcs_device_table(self.raw, Table.VALUE), tables.value, len(tables.value))

    def add_bar(self, bar: BarInfo) -> None:
        lib.pcs_device_bar(self.raw, bar.index, bar.size, bool(bar.flags & BarFlag.IO))
        for area in bar.areas:
            base = ffi.NULL
            if area.kind is AreaKind.MAPPED and area.mapping is not None:
                base = ffi.from_buffer("uint8_t[]", area.mapping)
                self._views.append(base)
            rule = Rule.MSIX_TABLE if area.kind is AreaKind.DENIED else 0
            places = (area.start, area.end, _AREA_KINDS[area.kind], area.widths, base, area.read_ns, area.write_ns)
            if lib.pcs_device_area(self.raw, bar.index, *places, area.fd, area.position, rule):
                raise ValueError(f"BAR {bar.index} has more areas than the backend takes")

    def set_vector(self, vector: int, fd: int) -> None:
        lib.pcs_device_vector(self.raw, vector, fd)

    def watch(self, fd: int, bit: int) -> None:
        """Wake the owner (EVENT, `bit` of 0-31) when `fd` becomes readable, while the loop runs; it is never read. OSError."""
        if lib.pcs_device_watch(self.raw, fd, bit):
            raise OSError(ffi.errno, f"descriptor {fd} of an event cannot be watched")

    # -- while it runs ----------------------------------------------------------------------------------------

    def set_state(self, state: DeviceState, generation: int) -> None:
        lib.pcs_device_set(self.raw, state, generation)

    def enable_vector(self, vector: int, on: bool) -> None:
        lib.pcs_device_enable(self.raw, vector, on)

    def config_value(self, offset: int, width: int) -> int:
        """What the virtual configuration space holds."""
        octets = ffi.cast("uint8_t *", lib.pcs_device_table(self.raw, Table.VALUE)) + offset
        return int.from_bytes(ffi.buffer(octets, width)[:], "little")

    def config_apply(self, offset: int, width: int, value: int) -> None:
        """Store the virtual bits of a write."""
        lib.pcs_device_config_apply(self.raw, offset, width, value)

    def refusals(self) -> dict[Rule, int]:
        """Refused accesses, by rule [CFG-5]; as they were when it was freed, after that."""
        with self._lock:
            if self.raw == ffi.NULL:
                return self._last[1]
            counts = {rule: int(lib.pcs_device_hits(self.raw, rule)) for rule in Rule}
        return {rule: count for rule, count in counts.items() if count}

    def tally(self) -> Tally:
        """Numbers as of now; as they were when it was freed, after that."""
        with self._lock:
            if self.raw == ffi.NULL:
                return self._last[0]
            t = ffi.new("struct pcs_tally *")
            lib.pcs_device_tally(self.raw, t)
        doing = t.doing - 1 if t.doing else None
        seconds = max(0, t.now - t.since) / 1e9 if t.doing else 0.0
        return Tally(doing, seconds, t.queued, t.requests, t.slices, t.ns, t.refused, t.posted_errors)

    # -- the owner ---------------------------------------------------------------------------------------------

    def owner_wait(self, timeout: float | None = None) -> Wake:
        """What there is to do; blocks without the GIL. `timeout` in seconds, None: for ever."""
        ms = -1 if timeout is None else min(math.ceil(max(0.0, timeout) * 1000), 1 << 30)
        return Wake(lib.pcs_owner_wait(self.raw, ms))

    def owner_request(self) -> Work:
        return Work.of(bytes(ffi.buffer(lib.pcs_owner_request(self.raw), wire.SLOT_SIZE)))

    def owner_progress(self) -> Progress:
        w = self._work
        return Progress(w.length, w.done, w.piece, Error(w.error), w.rule, w.os_error)

    def owner_went(self, done: int) -> bool:
        """The accesses up to octet `done` of the block were made. Ends this turn, without the GIL; False: it is finished."""
        return bool(lib.pcs_access_went(self.raw, done))

    def owner_failed(self, error: Error, rule: int) -> bool:
        """The write of a pack that was to be made failed; as ``owner_went``, with the next one."""
        return bool(lib.pcs_access_failed(self.raw, error, rule))

    def owner_finish(self, error: Error, rule: int = 0, value: int = 0, detail: int = 0, length: int = 0) -> None:
        lib.pcs_owner_finish(self.raw, error, rule, value, detail, length)

    def owner_events(self) -> int:
        """Bits of the watched descriptors that became readable since the last time."""
        return int(lib.pcs_owner_take_events(self.raw))

    def hold(self) -> None:
        """Returns when the loop is at a request boundary of the device and starts none until ``release``. The owner's."""
        lib.pcs_device_hold(self.raw)

    def release(self) -> None:
        lib.pcs_device_release(self.raw)

    def owner_wake(self) -> None:
        """Have ``owner_wait`` return MESSAGE."""
        with self._lock:
            if self.raw != ffi.NULL:
                lib.pcs_owner_wake(self.raw)

    def owner_stop(self) -> None:
        with self._lock:
            if self.raw != ffi.NULL:
                lib.pcs_owner_stop(self.raw)


def _numbers(names: Sequence[str], values: Sequence[int]) -> Any:
    """The u64 fields of a C structure; whoever casts it holds it."""
    if len(names) != len(values):
        raise ValueError(f"{len(values)} numbers for the fields {', '.join(names)}")
    return ffi.new("uint64_t[]", list(values))


class CoreServe:
    """One ``struct pcs_serve``. `places`: in the order of abi.PLACES."""

    def __init__(self, f2b: mmap.mmap, b2f: mmap.mmap, places: Sequence[int], kick: int, bell: int) -> None:
        if not (prefault(f2b) and prefault(b2f)):
            raise MemoryError("no memory for the shared regions of another session")
        self._views = [ffi.from_buffer("uint8_t[]", f2b), ffi.from_buffer("uint8_t[]", b2f)]
        numbers = _numbers(PLACES, places)
        self.raw: Any = lib.pcs_serve_new(*self._views, ffi.cast("struct pcs_places *", numbers), kick, bell)
        if self.raw == ffi.NULL:
            raise OSError("no epoll, eventfd or memory for another session: raise the limit of open files (ulimit -n)")
        self._freeing = threading.Lock()  # between who stops it and who frees it

    def free(self) -> None:
        """Idempotent; the loop must have come back."""
        with self._freeing:
            raw, self.raw = self.raw, ffi.NULL
        if raw != ffi.NULL:
            lib.pcs_serve_free(raw)
            for view in self._views:
                ffi.release(view)

    def add(self, device: CoreDevice, state_offset: int, run: Sequence[int]) -> None:
        """`run`: where its vectors' words are in b2f, in the order of abi.RUN."""
        numbers = _numbers(RUN, run)
        if lib.pcs_serve_add(self.raw, device.raw, state_offset, ffi.cast("struct pcs_run *", numbers)):
            raise ValueError("the session has more devices, mapped areas or vectors than it takes")

    def configure(self, spin: float, features: Feature) -> None:
        """`spin`: seconds to look for work before sleeping; `features`: those in force."""
        lib.pcs_serve_spin(self.raw, int(spin * 1e9))
        lib.pcs_serve_features(self.raw, features)

    def run(self) -> Run:
        """Why it came back. Blocks without the GIL."""
        return Run(lib.pcs_serve_run(self.raw))

    def stop(self) -> None:
        """Make ``run`` come back, from any thread."""
        with self._freeing:
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
