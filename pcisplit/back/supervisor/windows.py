# SPDX-License-Identifier: MIT
"""Where the DMA windows of sessions lie: each at IOVAs of its own, so that a late access of the last session's device faults."""

from collections.abc import Sequence

from pcisplit.back.devices.device import IovaRange
from pcisplit.back.host import dma


class Windows:
    """Places windows one behind the other, and from the start again when the space is used up [DMA-8]."""

    def __init__(self) -> None:
        self._after = 0

    def place(self, size: int, bits: int, ranges: Sequence[Sequence[IovaRange]]) -> int:
        """The IOVA of a window of `size` octets. Raises DeviceError (DMA_UNREACHABLE)."""
        iova = dma.place(size, bits, ranges, dma.host_pci_windows())
        self._after = iova + size
        return iova
