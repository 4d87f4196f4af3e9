# SPDX-License-Identifier: MIT
"""A BAR of a remote device, reached by messages."""

from collections.abc import Sequence

from pcisplit import bootinfo
from pcisplit._core import ffi, lib
from pcisplit.errors import AccessError, known_error
from pcisplit.front.native import Handle
from pcisplit.messages import Request
from pcisplit.wire import BarFlag, Op

_read, _write, _post, _block = lib.pcsf_bar_read, lib.pcsf_bar_write, lib.pcsf_bar_post, lib.pcsf_block


class Bar:
    """Offsets and sizes in octets; an offset is a multiple of the width. Methods raise AccessError, AccessTimeout, SessionGone.

    `write*` returns when the device has taken the write. `post*` returns at once; such a write has reached the device when a
    later read of that device has been answered, and its error is counted (``RemoteDevice.posted_errors``).
    """

    __slots__ = ("_device", "_handle", "_index", "_name", "flags", "size")

    def __init__(self, handle: Handle, device: int, name: str, info: bootinfo.Bar) -> None:
        self._handle, self._device, self._name, self._index = handle, device, name, info.index
        self.size = info.size
        self.flags = info.flags

    def __repr__(self) -> str:
        kind = "I/O" if self.flags & BarFlag.IO else "memory"
        return f"<BAR {self._index} of {self._name}: {self.size:#x} octets of {kind}>"

    def _where(self, what: str, offset: int, width: int) -> str:
        return f"{what} of {width} octets at {offset:#x} in BAR {self._index} ({self.size:#x} octets) of {self._name}"

    def read32(self, offset: int) -> int:
        packed: int = _read(self._handle.raw, self._device, self._index, offset, 4)
        if packed >> 32:
            self._handle.fail(packed, self._where("read", offset, 4))
        return packed

    def write32(self, offset: int, value: int) -> None:
        packed: int = _write(self._handle.raw, self._device, self._index, offset, 4, value)
        if packed >> 32:
            self._handle.fail(packed, self._where(f"write of {value:#x},", offset, 4))

    def read(self, offset: int, width: int) -> int:
        """One access of `width` octets: 1, 2, 4 or 8."""
        packed: int = _read(self._handle.raw, self._device, self._index, offset, width)
        if packed >> 32:
            self._handle.fail(packed, self._where("read", offset, width))
        return packed if width < 8 else int(lib.pcsf_last_value(self._handle.raw))

    def write(self, offset: int, width: int, value: int) -> None:
        packed: int = _write(self._handle.raw, self._device, self._index, offset, width, value)
        if packed >> 32:
            self._handle.fail(packed, self._where(f"write of {value:#x},", offset, width))

    def post(self, offset: int, width: int, value: int, publish: bool = True) -> None:
        """A posted write; with `publish` False it is seen with the next request, so that a batch costs one index store."""
        packed: int = _post(self._handle.raw, self._device, self._index, offset, width, value, publish)
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
        packed = _block(self._handle.raw, 0, self._device, self._index, offset, width, memory, length)
        if packed >> 32:
            self._handle.fail(packed, self._where(f"read of a block of {length} octets, accesses", offset, width))
        return bytes(ffi.buffer(memory))

    def write_block(self, offset: int, data: bytes, width: int = 4) -> None:
        """Write `data` to consecutive registers, `width` octets an access."""
        packed = _block(self._handle.raw, 1, self._device, self._index, offset, width, ffi.from_buffer(data), len(data))
        if packed >> 32:
            self._handle.fail(packed, self._where(f"write of a block of {len(data)} octets, accesses", offset, width))

    def read_many(self, offsets: Sequence[int], width: int = 4) -> list[int]:
        """Read several registers, all in flight at once; values in the order of `offsets`. At most 256 (else BUSY)."""
        requests = [
            Request(Op.BAR_READ, device=self._device, region=self._index, offset=offset, width=width)
            for offset in offsets
        ]
        what = f"{len(offsets)} reads of {width} octets in flight in BAR {self._index} of {self._name}"
        answers = self._handle.ask(requests, what)
        for offset, answer in zip(offsets, answers, strict=True):
            if answer.error:
                where = f"{self._where('read', offset, width)}, one of {len(offsets)} in flight"
                raise AccessError(known_error(answer.error), where, answer.rule, answer.detail)
        return [answer.value for answer in answers]
