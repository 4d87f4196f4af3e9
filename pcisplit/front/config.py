# SPDX-License-Identifier: MIT
"""Configuration space of a remote device."""

from pcisplit._core import lib
from pcisplit.front.native import Handle

_read, _write = lib.pcsf_config_read, lib.pcsf_config_write


class Config:
    """Offsets in octets, multiples of the width. Every method raises AccessError, AccessTimeout or SessionGone."""

    __slots__ = ("_device", "_handle", "_name")

    def __init__(self, handle: Handle, device: int, name: str) -> None:
        self._handle, self._device, self._name = handle, device, name

    def __repr__(self) -> str:
        return f"<configuration space of {self._name}>"

    def read(self, offset: int, width: int) -> int:
        packed: int = _read(self._handle.raw, self._device, offset, width)
        if packed >> 32:
            self._handle.fail(
                packed, f"read of {width} octets at {offset:#x} in the configuration space of {self._name}"
            )
        return packed

    def write(self, offset: int, width: int, value: int) -> None:
        packed: int = _write(self._handle.raw, self._device, offset, width, value)
        if packed >> 32:
            what = f"write of {value:#x}, {width} octets, at {offset:#x} in the configuration space of {self._name}"
            self._handle.fail(packed, what)

    def read8(self, offset: int) -> int:
        return self.read(offset, 1)

    def read16(self, offset: int) -> int:
        return self.read(offset, 2)

    def read32(self, offset: int) -> int:
        return self.read(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        self.write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        self.write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        self.write(offset, 4, value)

    def dump(self, length: int = 64) -> bytes:
        """The first `length` octets, a multiple of 4."""
        return b"".join(self.read32(offset).to_bytes(4, "little") for offset in range(0, length, 4))
