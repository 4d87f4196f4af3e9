# SPDX-License-Identifier: MIT
"""Accesses to mapped memory that Python cannot promise: one load or store of an exact width, ordered.

``struct.pack_into`` zeroes its target before it writes, and a slice of an mmap is copied by whatever memcpy likes; on a
ring index or a register both are bugs.
"""

import mmap

from pcisplit._core import ffi, lib
from pcisplit.proto.errors import AccessError
from pcisplit.wire import Error


class Words:
    """Sequentially consistent 32-bit words in a mapping, for tools and tests. Offsets in octets, multiples of 4."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._view = ffi.from_buffer("uint8_t[]", buffer)
        self._size = len(buffer)

    def load(self, offset: int) -> int:
        return int(lib.pcisplit_word_load(self._view + self._check(offset)))

    def store(self, offset: int, value: int) -> None:
        lib.pcisplit_word_store(self._view + self._check(offset), value)

    def release(self) -> None:
        """Let go of the mapping, so that it can be closed."""
        ffi.release(self._view)

    def _check(self, offset: int) -> int:
        if offset % 4 or not 0 <= offset <= self._size - 4:
            raise ValueError(f"word offset {offset:#x} is not a multiple of 4 inside {self._size:#x} octets")
        return offset


def mmio_read(buffer: mmap.mmap, offset: int, width: int) -> int:
    """One load of `width` octets (1, 2, 4, 8) from mapped device memory.

    Raises AccessError: FAULTED if the memory is not there any more, UNALIGNED, INVALID_OFFSET.
    """
    return _mmio(buffer, offset, width, 0, 0)


def mmio_write(buffer: mmap.mmap, offset: int, width: int, value: int) -> None:
    """One store of `width` octets (1, 2, 4, 8) to mapped device memory. Raises as mmio_read."""
    _mmio(buffer, offset, width, 1, value)


def _mmio(buffer: mmap.mmap, offset: int, width: int, write: int, value: int) -> int:
    where = f"{'write' if write else 'read'} of {width} octets at {offset:#x}"
    if offset % width:
        raise AccessError(Error.UNALIGNED, where)
    cell = ffi.new("uint64_t *", value)
    with ffi.from_buffer("uint8_t[]", buffer) as view:
        error = lib.pcs_guarded_access(view, len(buffer), offset, width, write, cell)
    if error:
        raise AccessError(Error(error), where)
    return int(cell[0])
