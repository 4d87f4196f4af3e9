# SPDX-License-Identifier: MIT
"""DMA memory of a session: shared by every device of it, at the same IOVA."""

import mmap
from typing import NamedTuple

from pcisplit.bootinfo import DmaWindow
from pcisplit.errors import AccessError
from pcisplit.wire import Error


class DmaBuffer(NamedTuple):
    """`memory` is the driver's view, `iova` the device's; `size` in octets."""

    memory: memoryview
    iova: int
    size: int

    def __repr__(self) -> str:
        return f"<DMA buffer: {self.size:#x} octets at IOVA {self.iova:#x}>"


class DmaPool:
    """First-fit allocator over the session's windows. Freed space is merged with its neighbours."""

    def __init__(self, memory: mmap.mmap | None, windows: tuple[DmaWindow, ...]) -> None:
        self._view = memoryview(memory) if memory is not None else memoryview(b"")
        self._windows = windows
        self._free: list[list[tuple[int, int]]] = [[(0, window.size)] for window in windows]  # (start, end), sorted
        self._loans: list[memoryview] = []
        self.size = sum(window.size for window in windows)

    def __repr__(self) -> str:
        free = sum(end - start for spans in self._free for start, end in spans)
        return f"<DMA pool: {self.size:#x} octets in {len(self._windows)} windows, {free:#x} free>"

    def alloc(self, size: int, align: int = 64) -> DmaBuffer:
        """`size` octets whose IOVA is a multiple of `align`. Raises AccessError (QUOTA) when no free span fits."""
        for window, spans in zip(self._windows, self._free, strict=True):
            for at, (start, end) in enumerate(spans):
                first = -(-(window.iova + start) // align) * align - window.iova
                if first + size <= end:
                    spans[at : at + 1] = [s for s in ((start, first), (first + size, end)) if s[0] < s[1]]
                    memory = self._view[window.offset + first : window.offset + first + size]
                    self._loans.append(memory)
                    return DmaBuffer(memory, window.iova + first, size)
        what = f"{size:#x} octets aligned to {align:#x} in {self!r}; ask for more at connect(dma=...) and serve --dma"
        raise AccessError(Error.QUOTA, what)

    def free(self, buffer: DmaBuffer) -> None:
        """Give a buffer back; its memory must not be used any more. Raises ValueError if it is not of this pool."""
        for window, spans in zip(self._windows, self._free, strict=True):
            start = buffer.iova - window.iova
            if start >= 0 and start + buffer.size <= window.size:
                end = start + buffer.size
                if any(start < e and s < end for s, e in spans):
                    break
                buffer.memory.release()
                spans.append((start, end))
                spans.sort()
                merged: list[tuple[int, int]] = []
                for span in spans:
                    if merged and merged[-1][1] == span[0]:
                        merged[-1] = (merged[-1][0], span[1])
                    else:
                        merged.append(span)
                spans[:] = merged
                return
        raise ValueError(f"{buffer!r} is not allocated in {self!r}")

    def release(self) -> None:
        """Let go of the memory, buffers included, so that it can be unmapped."""
        for loan in self._loans:
            loan.release()
        self._view.release()
