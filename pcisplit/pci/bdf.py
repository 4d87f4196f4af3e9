# SPDX-License-Identifier: MIT
"""Addresses of functions on a host, and names that devices may have."""

import re
from typing import NamedTuple, Self

__all__ = ["Bdf", "is_device_name"]

_BDF = re.compile(r"(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])")
_NAME = re.compile(r"[A-Za-z0-9]{1,67}")


class Bdf(NamedTuple):
    """Address of a PCI function on the host; prints as ``0000:03:00.0``."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[DDDD:]BB:DD.F``. Raises ValueError with the form that is wanted."""
        match = _BDF.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not a PCI address; write it as 0000:03:00.0 (domain:bus:device.function)")
        domain, bus, device, function = match.groups()
        return cls(int(domain or "0", 16), int(bus, 16), int(device, 16), int(function))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


def is_device_name(text: str) -> bool:
    """Whether `text` can name a device: ``[A-Za-z0-9]{1,67}``, as in a Solo5 manifest."""
    return _NAME.fullmatch(text) is not None
