# SPDX-License-Identifier: MIT
"""The frontend: drive a device that another process owns.

    with pcisplit.front.connect(path) as session:
        nic = session.acquire("nic0")
        nic.config.read16(0)
        nic.bar(0).read32(8)
        buffer = session.dma.alloc(4096)
        nic.irq(0).enable()
        nic.irq(0).wait(timeout=1.0)

Synchronous: a call spins within its budget, then blocks without the GIL until the answer or the deadline. What waits for
the device (interrupts) has an async twin for trio. A session is for one thread at a time.
"""

from pathlib import Path

import pcisplit.errors  # noqa: F401  (what its calls raise is there with it)
from pcisplit.front.bar import Bar
from pcisplit.front.config import Config
from pcisplit.front.device import RemoteDevice
from pcisplit.front.dma import DmaBuffer, DmaPool
from pcisplit.front.irq import Irq
from pcisplit.front.meet import connect
from pcisplit.front.session import Session

__all__ = ["Bar", "Config", "DmaBuffer", "DmaPool", "Irq", "RemoteDevice", "Session", "connect", "include_dirs"]


def include_dirs() -> list[str]:
    """Folders with ``pcifront.h`` and what it includes, for a unikernel's build."""
    package = Path(__file__).resolve().parent
    return [str(package), str(package.parent / "ring")]
