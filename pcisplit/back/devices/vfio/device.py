# SPDX-License-Identifier: MIT
"""A PCI function as serve was given it, and the groups of a process that keeps some.

Making a `VfioDevice` reads sysfs and opens nothing. Its `acquire` is for a process that is keeper and worker in one.
"""

import threading

from pcisplit.back.devices.device import Device
from pcisplit.back.devices.vfio.acquire import acquire
from pcisplit.back.devices.vfio.checks import check_function, check_identity, find_group
from pcisplit.back.devices.vfio.function import VfioFunction
from pcisplit.back.devices.vfio.group import Group
from pcisplit.back.devices.vfio.resets import CHOICES
from pcisplit.pci import Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error


class VfioHost:
    """The IOMMU groups that this process holds, by number, and which functions of each are open."""

    def __init__(self) -> None:
        self._groups: dict[int, Group] = {}
        self._open: dict[int, set[Bdf]] = {}
        self._lock = threading.Lock()

    def enter(self, number: int, bdf: Bdf) -> Group:
        """The group, opened if need be, with a session begun if this is its first function. DeviceError."""
        with self._lock:
            users = self._open.setdefault(number, set())
            if bdf in users:
                raise DeviceError(Error.BUSY, f"{bdf}: is already acquired")
            group = self._groups.get(number) or Group(number)
            self._groups[number] = group
            if not users:
                group.end()  # of a session that could not end in time: once more
                group.begin()
            users.add(bdf)
            return group

    def leave(self, number: int, bdf: Bdf) -> None:
        """The function is closed; the last one of its group ends the session. DeviceError of ``Group.end``. Idempotent."""
        with self._lock:
            users = self._open.get(number, set())
            if bdf in users:
                users.remove(bdf)
                if not users:
                    self._groups[number].end()

    def shutdown(self, number: int) -> None:
        """Let go of a group of which nothing is open. Idempotent."""
        with self._lock:
            if not self._open.get(number) and (group := self._groups.pop(number, None)):
                group.close()


class VfioDevice(Device):
    """One PCI function. For what each method does see `Device`."""

    def __init__(self, bdf: Bdf, expect_id: tuple[int, int] | None, host: VfioHost, reset: str = "") -> None:
        """Find the function and its group; opens nothing.

        `expect_id` is (vendor, device) as the operator gave them, `reset` one of ``resets.CHOICES``, or empty for whatever
        the kernel takes. All VFIO devices of a process share one `host`. DeviceError if the function is absent, another
        one, or behind no IOMMU; ValueError for another `reset`.
        """
        if reset and reset not in CHOICES:
            raise ValueError(f"reset={reset} is none of {', '.join(CHOICES)}")
        self.group_number = find_group(bdf)
        check_identity(bdf, expect_id)
        self.bdf, self.expect_id, self.reset = bdf, expect_id, reset
        self.spec = str(bdf)
        self.group = f"iommu-group-{self.group_number}"
        self._host = host
        self._function: VfioFunction | None = None

    def acquire(self) -> VfioFunction:
        """Open it, in a session of its group with every function of it that is open, its BARs mapped."""
        check_function(
            self.bdf, self.group_number, self.expect_id
        )  # whose sentence says more than that of a missing node
        group = self._host.enter(self.group_number, self.bdf)
        function: VfioFunction | None = None
        try:
            function = acquire(group, self.bdf, self.expect_id, self.reset)
            function.map_bars()
        except BaseException:
            if function is not None:
                function.close()
            self._host.leave(self.group_number, self.bdf)
            raise
        function.on_close(lambda: self._host.leave(self.group_number, self.bdf))
        self._function = function
        return function

    def shutdown(self) -> None:
        try:
            if self._function is not None:
                self._function.close()
        finally:
            self._host.shutdown(self.group_number)
