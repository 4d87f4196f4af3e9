# SPDX-License-Identifier: MIT
"""dump:FILE - the configuration space of a real device, from the output of ``lspci -xxx`` or ``lspci -xxxx``.

For policy work without the device. BARs whose size the file tells (``lspci -v``: ``Memory at f0000000 ... [size=16K]``) are
plain memory; the others are absent.
"""

import re
from pathlib import Path

from pcisplit import pci
from pcisplit.back.devices.device import BarInfo, Interrupts
from pcisplit.back.devices.models.base import ModelDevice, bar
from pcisplit.wire import BarFlag

_ROW = re.compile(r"^([0-9a-f]{2,3}): ((?:[0-9a-f]{2} ?){1,16})$")
_REGION = re.compile(r"Region (\d): Memory at \S+ \((?:(\d+)-bit), (non-)?prefetchable\).*\[size=(\d+)([KMG]?)\]")
_UNIT = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BAR_MOST = 16 << 20  #: octets of memory a BAR of a dump may take


class DumpModel(ModelDevice):
    """The first device of the file. Raises ValueError when the file holds no dump, OSError when it cannot be read."""

    interrupts = Interrupts()  # whatever its capabilities say: nothing here would raise one

    def __init__(self, path: str) -> None:
        text = Path(path).read_text(errors="replace").split("\n\n")[0]
        octets = parse_dump(text, path)
        self.config_size = len(octets)
        super().__init__(f"dump:{path}", resettable=True)
        self._octets = octets
        self._regions = parse_regions(text)

    def _initial_config(self) -> bytes:
        return self._octets

    def _power_on(self) -> None:
        self.bars = tuple(self._region_bar(*region) for region in self._regions)

    def _region_bar(self, index: int, size: int, flags: BarFlag) -> BarInfo:
        return bar(index, size, self._memory_area(size), flags=flags)


def parse_dump(text: str, name: str) -> bytes:
    """256 or 4096 octets of configuration space from the hexadecimal rows of `text`."""
    rows = [match for line in text.splitlines() if (match := _ROW.match(line.strip()))]
    octets = bytearray()
    for row in rows:
        if int(row[1], 16) != len(octets):
            raise ValueError(f"{name}: the row at {row[1]} does not follow the one before; run lspci -xxx -s BDF")
        octets += bytes.fromhex(row[2])
    if len(octets) not in (pci.CONFIG_SIZE, pci.CONFIG_SIZE_EXTENDED):
        raise ValueError(f"{name}: {len(octets)} octets of configuration space, not 256 or 4096; run lspci -xxx -s BDF")
    return bytes(octets)


def parse_regions(text: str) -> list[tuple[int, int, BarFlag]]:
    """(index, size in octets, flags) of the memory BARs of `text` that are at most 16 MiB and whole pages."""
    regions = []
    for index, bits, non, size, unit in _REGION.findall(text):
        flags = BarFlag.MEM64 if bits == "64" else BarFlag(0)
        flags |= BarFlag(0) if non else BarFlag.PREFETCHABLE
        octets = int(size) * _UNIT[unit]
        if octets % 4096 == 0 and octets <= _BAR_MOST and int(index) < 6:
            regions.append((int(index), octets, flags))
    return regions
