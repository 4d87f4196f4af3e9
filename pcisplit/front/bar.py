# SPDX-License-Identifier: MIT
"""A BAR of a remote device, reached by messages."""

import array
from collections.abc import Iterable, Sequence

from pcisplit._core import ffi, lib
from pcisplit.front.native import Handle
from pcisplit.proto import bootinfo
from pcisplit.wire import BarFlag

_read, _read32, _write, _post, _block = (
    lib.pcsf_bar_read,
    lib.pcsf_bar_read32,
    lib.pcsf_bar_write,
    lib.pcsf_bar_post,
    lib.pcsf_bar_block,
)
_read_many, _post_many = lib.pcsf_bar_read_many, lib.pcsf_bar_post_many


class Bar:
    """Offsets and sizes in octets; an offset is a multiple of the width. Methods raise AccessError, AccessTimeout, SessionGone.

    `write*` returns when the device has taken the write. `post*` returns at once; such a write has reached the device when a
    later read of that device has been answered, and its error is counted (``RemoteDevice.posted_errors``).
    """

    __slots__ = ("_handle", "_index", "_name", "_raw", "flags", "size")

    def __init__(self, handle: Handle, device: int, name: str, info: bootinfo.Bar) -> None:
        self._handle, self._name, self._index = handle, name, info.index
        self._raw = handle.bar(device, info.index)
        self.size = info.size
        self.flags = info.bar_flags

    def __repr__(self) -> str:
        kind = "I/O" if self.flags & BarFlag.IO else "memory"
        return f"<BAR {self._index} of {self._name}: {self.size:#x} octets of {kind}>"

    def _where(self, what: str, offset: int, width: int) -> str:
        return f"{what} of {width} octets at {offset:#x} in BAR {self._index} ({self.size:#x} octets) of {self._name}"

    def read32(self, offset: int) -> int:
        packed: int = _read32(self._raw, offset)
        if packed >> 32:
            self._handle.fail(packed, self._where("read", offset, 4))
        return packed

    def write32(self, offset: int, value: int) -> None:
        packed: int = _write(self._raw, offset, 4, value)
        if packed >> 32:
            self._handle.fail(packed, self._where(f"write of {value:#x},", offset, 4))

    def read(self, offset: int, width: int) -> int:
        """One access of `width` octets: 1, 2, 4 or 8."""
        packed: int = _read(self._raw, offset, width)
        if packed >> 32:
            self._handle.fail(packed, self._where("read", offset, width))
        return packed if width < 8 else int(lib.pcsf_last_value(self._handle.raw))

    def write(self, offset: int, width: int, value: int) -> None:
        packed: int = _write(self._raw, offset, width, value)
        if packed >> 32:
            self._handle.fail(packed, self._where(f"write of {value:#x},", offset, width))

    def post(self, offset: int, width: int, value: int, publish: bool = True) -> None:
        """A posted write; with `publish` False it may wait for others to travel with it, and is seen with the next request."""
        packed: int = _post(self._raw, offset, width, value, publish)
        if packed >> 32:
            self._handle.fail(packed, self._where("posted write", offset, width))

    def read8(self, offset: int) -> int:
        return self.read(offset, 1)

    def read16(self, offset: int) -> int:
        return self.read(offset, 2)

    def read64(self, offset: int) -> int:
        return self.read(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        self.write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        self.write(offset, 2, value)

    def write64(self, offset: int, value: int) -> None:
        self.write(offset, 8, value)

    def post32(self, offset: int, value: int) -> None:
        self.post(offset, 4, value)

    def read_block(self, offset: int, length: int, width: int = 4) -> bytes:
        """`length` octets from consecutive registers, `width` octets an access. On an error nothing is returned."""
        memory = ffi.new("uint8_t[]", length)
        packed = _block(self._raw, 0, offset, width, memory, length)
        if packed >> 32:
            self._handle.fail(packed, self._where(f"read of a block of {length} octets, accesses", offset, width))
        return bytes(ffi.buffer(memory))

    def write_block(self, offset: int, data: bytes, width: int = 4) -> None:
        """Write `data` to consecutive registers, `width` octets an access."""
        packed = _block(self._raw, 1, offset, width, ffi.from_buffer(data), len(data))
        if packed >> 32:
            self._handle.fail(packed, self._where(f"write of a block of {len(data)} octets, accesses", offset, width))

    def read_many(self, offsets: Iterable[int], width: int = 4) -> Sequence[int]:
        """Read several registers in order, in one call and as few slots as there can be; values in the order of `offsets`.

        Quickest with an ``array('I')`` of offsets: then the values come as an ``array('Q')``, otherwise as a list. An AccessError
        says which read met it; those after it may have been made too.
        """
        places = _array("I", offsets)
        values = array.array("Q", bytes(8 * len(places)))
        packed: int = _read_many(
            self._raw, width, ffi.from_buffer("uint32_t[]", places), ffi.from_buffer("uint64_t[]", values), len(places)
        )
        if packed >> 32:
            done = int(lib.pcsf_last_moved(self._handle.raw))
            offset = places[done] if done < len(places) else 0
            self._handle.fail(packed, f"{self._where('read', offset, width)}, number {done + 1} of {len(places)}")
        return values if places is offsets else values.tolist()

    def post_many(self, offsets: Iterable[int], values: Iterable[int], width: int = 4) -> None:
        """Posted writes to several registers, in order, in one call: as ``post``. ValueError if there are not as many values."""
        places, octets = _array("I", offsets), _array("Q", values)
        if len(places) != len(octets):
            raise ValueError(f"{len(places)} offsets and {len(octets)} values")
        packed: int = _post_many(
            self._raw, width, ffi.from_buffer("uint32_t[]", places), ffi.from_buffer("uint64_t[]", octets), len(places)
        )
        self._handle.check(
            packed, f"{len(places)} posted writes of {width} octets in BAR {self._index} of {self._name}"
        )


def _array(code: str, numbers: Iterable[int]) -> "array.array[int]":
    """`numbers` as an array that C can read; OverflowError if one does not fit: offsets are below 4 GiB here."""
    return numbers if isinstance(numbers, array.array) and numbers.typecode == code else array.array(code, numbers)
