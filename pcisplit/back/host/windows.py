# SPDX-License-Identifier: MIT
"""Which addresses the host gives to PCI devices and bridges, as everybody may read it [DMA-9]."""

import re
from pathlib import Path

from pcisplit.back.devices.device import IovaRange

_RESOURCE_MEM = 0x200  #: IORESOURCE_MEM of linux/ioport.h
_ROW = re.compile(r"^0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)$", re.M)
_PCI_DEVICES = Path("/sys/bus/pci/devices")


def host_pci_windows(devices: Path = _PCI_DEVICES) -> list[IovaRange]:
    """Memory addresses of all BARs, ROMs and bridge windows of this host, sorted, what touches or overlaps made one.

    Source: `resource` of each device (Documentation/ABI/testing/sysfs-bus-pci): first and last address and flags, a line
    each. /proc/iomem, which knows more, shows zeros to whoever is not root.
    """
    found: list[IovaRange] = []
    for path in sorted(devices.glob("*/resource")):
        try:
            rows = _ROW.findall(path.read_text())
        except OSError:  # the device has gone meanwhile
            continue
        for first, last, flags in ((int(number, 16) for number in row) for row in rows):
            if flags & _RESOURCE_MEM and 0 < first <= last:
                found.append(IovaRange(first, last))
    merged: list[IovaRange] = []
    for window in sorted(found):
        if merged and window.first <= merged[-1].last + 1:
            merged[-1] = IovaRange(merged[-1].first, max(merged[-1].last, window.last))
        else:
            merged.append(window)
    return merged
