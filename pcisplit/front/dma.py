# SPDX-License-Identifier: MIT
"""DMA memory of a session: shared by every device of it, at the same IOVA."""

import mmap
from typing import NamedTuple

from pcisplit.proto.bootinfo import DmaWindow
from pcisplit.proto.errors import AccessError, BusyError
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
        return f"<DMA pool: {self.size:#x} octets in {len(self._windows)} windows, {self.free_size:#x} free>"

    @property
    def free_size(self) -> int:
        """Octets that are not allocated; not all of them in one piece."""
        return sum(end - start for spans in self._free for start, end in spans)

    def alloc(self, size: int, align: int = 64) -> DmaBuffer:
        """`size` octets whose IOVA is a multiple of `align`. Raises AccessError (DMA_TOO_LARGE) when no free span fits."""
        for window, spans in zip(self._windows, self._free, strict=True):
            for at, (start, end) in enumerate(spans):
                first = -(-(window.iova + start) // align) * align - window.iova
                if first + size <= end:
                    spans[at : at + 1] = [s for s in ((start, first), (first + size, end)) if s[0] < s[1]]
                    memory = self._view[window.offset + first : window.offset + first + size]
                    self._loans.append(memory)
                    return DmaBuffer(memory, window.iova + first, size)
        largest = max((end - start for spans in self._free for start, end in spans), default=0)
        has = f"the pool of {self.size:#x} octets has {self.free_size:#x} free, at most {largest:#x} in one piece"
        change = "free a buffer, or ask for more at connect(dma=...), which serve --dma must allow"
        what = f"{size:#x} octets of DMA memory aligned to {align:#x}"
        raise AccessError(Error.DMA_TOO_LARGE, what, sentence=f"{has}: {change}")

    def free(self, buffer: DmaBuffer) -> None:
        """Give a buffer back; its memory must not be used any more.

        Raises ValueError if it is not of this pool, BusyError if something made of its memory (an array) still is.
        """
        for window, spans in zip(self._windows, self._free, strict=True):
            start = buffer.iova - window.iova
            if start >= 0 and start + buffer.size <= window.size:
                end = start + buffer.size
                if any(start < e and s < end for s, e in spans):
                    break
                if not _let_go(buffer.memory):
                    raise BusyError(f"{buffer!r} is still in use: let go of what was made of its memory, then free it")
                self._loans = [loan for loan in self._loans if loan is not buffer.memory]
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

    def release(self) -> int:
        """Let go of the memory, buffers included, so that it can be unmapped. Idempotent.

        Returns how many buffers are still in use: something else than a slice was made of their memory.
        """
        self._free = [[] for _ in self._windows]
        self._loans = [loan for loan in self._loans if not _let_go(loan)]
        self._view.release()
        return len(self._loans)


def _let_go(memory: memoryview) -> bool:
    try:
        memory.release()
    except BufferError:
        return False
    return True
