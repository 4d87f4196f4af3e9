# SPDX-License-Identifier: MIT
"""A back session and a front session in one process, without socket or server, around any device.

For what needs a device that remembers what was done to it, or blocks, or lies. What crosses is the same shared memory.
"""

import os
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pcisplit import wire
from pcisplit.back.devices.device import Area, AreaKind
from pcisplit.back.devices.models.base import ModelDevice, bar
from pcisplit.back.host import resources
from pcisplit.back.host.dma import IOVA_FIRST, create_memory, round_size
from pcisplit.back.teardown import Teardown
from pcisplit.back.worker.assemble import DeviceOrder, SessionOrder
from pcisplit.back.worker.session import WorkerSession
from pcisplit.front import Session
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.wire import ResetMethod, VectorType


class Recorder(ModelDevice):
    """A device that writes down what is done to it; `hold` makes its register accesses wait."""

    vendor, device_id = 0x1234, 0x0001

    def __init__(self, name: str = "recorder", resettable: bool = True) -> None:
        super().__init__(name, resettable)
        self.calls: list[str] = []
        self.hold = threading.Event()
        self.hold.set()

    def _power_on(self) -> None:
        self.bars = (bar(0, 4096, Area(0, 4096, AreaKind.OWNER)), bar(1, 4096, self._memory_area(4096)))

    def config_write(self, offset: int, width: int, value: int) -> None:
        self.calls.append(f"config {offset:#x} = {value:#x}")
        super().config_write(offset, width, value)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        self.hold.wait(20)
        self.calls.append(f"read {offset:#x}/{width}")
        return offset

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.hold.wait(20)
        self.calls.append(f"write {offset:#x}/{width} = {value:#x}")

    def irq_set(self, kind: VectorType, start: int, eventfds: Sequence[int]) -> None:
        if kind is VectorType.MSI and not eventfds:
            self.calls.append("interrupts off")
        super().irq_set(kind, start, eventfds)

    def reset(self, method: ResetMethod | None = None) -> ResetMethod:
        self.calls.append("reset")
        return super().reset(method)

    def unmap_dma(self) -> int:
        self.calls.append("unmap")
        return super().unmap_dma()

    def close(self) -> None:
        self.calls.append("close")
        super().close()


class Pair:
    """Both sides, around `devices`. ``front`` is a Session; leaving the context closes both, ``teardown`` tells how it went."""

    def __init__(self, *devices: ModelDevice, dma: int = 1 << 20, start: bool = True, spin: float = 0.0) -> None:
        names = [f"dev{index}" for index in range(len(devices))]
        orders = tuple(
            DeviceOrder(name, min(device.interrupts.msi, 1)) for name, device in zip(names, devices, strict=True)
        )
        size = round_size(dma)
        order = SessionOrder(1, wire.BUILT, wire.MINOR, orders, size, IOVA_FIRST, spin)
        made = resources.create(
            [device.vectors for device in orders], order.layout, create_memory(size)[0] if size else -1
        )
        self.back = WorkerSession(order, made, [device.acquire() for device in devices])
        self._threads: list[threading.Thread] = []
        self.teardown: Teardown | None = None
        self.boot_info = self.back.open()
        resources.seal_b2f(made.b2f)
        fds = [made.f2b, made.b2f, made.kick, made.rung, *([made.dma] if size else [])]
        self.sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._other = other
        if start:
            self.start()
        self._fds = [os.dup(fd) for fd in fds]
        if start:
            info = parse_boot_info_untrusted(self.boot_info)
            self.front = Session(self.sock, info, self.boot_info, self._fds, 20.0)

    def start(self) -> None:
        """Start the serve loop and the owners."""
        self.back.start()
        self._threads.append(threading.Thread(target=self.back.serve, daemon=True))
        self._threads[-1].start()

    def stop(self) -> Teardown:
        """End the back as its worker does."""
        self.back.stop()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a thread of the back does not end"
        self.teardown = self.back.close()
        self._other.close()
        return self.teardown

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "front"):
            self._other.close()  # nobody else would: the front waits for it
            self.front.close()
        else:
            for fd in self._fds:
                os.close(fd)
            self.sock.close()
        if self.teardown is None:
            self.stop()
