# SPDX-License-Identifier: MIT
"""Keeper and worker as two processes: what a worker can do with a device's descriptor, and the safe order without it.

The keeper is the check's process; its worker is forked before any VFIO descriptor exists and gets one by SCM_RIGHTS.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pcisplit.back.devices import quiet
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.acquire import acquire
from pcisplit.back.devices.vfio.function import VfioFunction
from pcisplit.back.devices.vfio.group import Group
from pcisplit.pci import COMMAND, COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MEM
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error, ResetMethod, VectorType

from .check import clause, iommu_group
from .vfio import (
    DMA_TO_MEMORY,
    EDU_BUFFER,
    ID,
    QUIET,
    RAISE,
    SECONDS,
    WINDOW,
    Memory,
    bind_all,
    code,
    dma,
    edus,
    eventfd,
    load,
    master,
    open_files,
    pinned,
    signalled,
    start_dma,
    store,
)

DEVICES = ["pcie-root-port,id=rp1,chassis=1,slot=1,addr=0x10", "edu,bus=rp1"]

Work = Callable[[VfioFunction, socket.socket], None]


def setup() -> None:
    """Gives edu to vfio-pci for all checks."""
    bind_all()


class NoKeeper:
    """The `Host` of a worker that asks for nothing."""

    def hot_reset(self) -> None:
        raise DeviceError(Error.NO_RESET, "not here")

    def select_reset(self, method: ResetMethod) -> None:
        raise DeviceError(Error.NO_RESET, f"not here: {method.name}")

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        raise DeviceError(Error.OP_FAILED, f"not here: {size} octets of {fd} at {iova:#x}")

    def unmap_dma(self) -> int:
        raise DeviceError(Error.OP_FAILED, "not here")


class Keeper:
    """A group with a session, its one function, DMA memory; and a worker that has been sent the function."""

    def __init__(self, work: Work) -> None:
        """`work` is what the worker does with its function; its first message to the keeper is awaited."""
        assert not open_files()
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(SECONDS)
        self.worker = os.fork()
        if self.worker == 0:
            self.sock.close()
            _live(theirs, work)
        theirs.close()
        (self.bdf,) = edus()
        self.group = Group(iommu_group(str(self.bdf)))
        self.memory = Memory()
        self.function = self.begin()
        description = json.dumps(self.function.describe()).encode()
        socket.send_fds(self.sock, [description], [self.function.fileno()])
        assert "vfio" not in Path("/proc/self/maps").read_text(), "a keeper maps no BAR"
        self.said = self.sock.recv(64)

    def begin(self) -> VfioFunction:
        self.group.begin()
        function = acquire(self.group, self.bdf)
        self.group.map(self.memory.fd, WINDOW, WINDOW)
        return function

    def safe_order(self) -> tuple[ResetMethod, int]:
        """All of it but the end of the group's session; returns how it was reset, and the octets unmapped."""
        quiet.master_off(self.function)
        quiet.wait_transactions(self.function)
        quiet.interrupts_off(self.function)
        method = self.function.reset()
        unmapped = self.group.unmap()
        self.function.close()
        return method, unmapped

    def kill(self) -> None:
        os.kill(self.worker, signal.SIGKILL)
        os.waitpid(self.worker, 0)
        self.sock.close()

    def check_next_session(self) -> None:
        """The device is as good as new, for a worker in this process."""
        self.function = self.begin()
        assert self.function.config_read(COMMAND, 2) & 0x407 == COMMAND_MEM | COMMAND_INTX_DISABLE
        self.function.map_bars()
        master(self.function)
        assert self.memory.round_trip(self.function, b"the next one") == b"the next one"
        fd = eventfd()
        self.function.irq_set(VectorType.MSI, 0, [fd])
        store(self.function, RAISE, 1)
        assert signalled(fd) == 1
        self.safe_order()
        self.group.end()
        self.group.close()
        assert not open_files()


def _live(sock: socket.socket, work: Work) -> None:
    try:
        description, (fd,), _, _ = socket.recv_fds(sock, 65536, 1)
        function = VfioFunction.from_description(fd, json.loads(description), NoKeeper())
        assert not function.bars or all(area.mapping is None for bar in function.bars for area in bar.areas)
        function.map_bars()
        work(function, sock)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def in_the_middle_of_a_dma(function: VfioFunction, sock: socket.socket) -> None:
    """Interrupts on, MASTER on, edu's buffer full, and a transfer to memory that is not done when the keeper hears of it."""
    fd = eventfd()
    function.irq_set(VectorType.MSI, 0, [fd])
    master(function)
    dma(function, WINDOW, EDU_BUFFER, 8, 0)
    start_dma(function, EDU_BUFFER, WINDOW + mmap.PAGESIZE, 8, DMA_TO_MEMORY)
    sock.send(b"started")
    signal.pause()


@clause("LIFE-10", "LIFE-11", "LIFE-13", "LIFE-14")
def check_worker_killed_in_the_middle_of_a_dma() -> None:
    """SIGKILL of the worker: the keeper, which mapped nothing, does the safe order; the device is given again."""
    before = pinned()
    keeper = Keeper(in_the_middle_of_a_dma)
    assert keeper.said == b"started"
    assert pinned() - before >= WINDOW // mmap.PAGESIZE, "the mapper is gone, what it pinned is not"
    keeper.kill()
    assert keeper.function.config_read(COMMAND, 2) & COMMAND_MASTER, "a device does not know that its driver is dead"
    assert keeper.safe_order() == (ResetMethod.BUS, WINDOW)
    keeper.group.end()
    assert pinned() == before
    keeper.memory.octets[:] = bytes(WINDOW)
    keeper.check_next_session()
    assert keeper.memory.octets[mmap.PAGESIZE : mmap.PAGESIZE + 12] == b"the next one"


@clause("LIFE-10", "LIFE-14")
def check_worker_that_does_not_die() -> None:
    """A worker that is stopped, its BAR mapped: the safe order works, but the session does not end before the worker does."""
    keeper = Keeper(in_the_middle_of_a_dma)
    os.kill(keeper.worker, signal.SIGSTOP)
    os.waitpid(keeper.worker, os.WUNTRACED)
    assert keeper.safe_order() == (ResetMethod.BUS, WINDOW)
    try:
        keeper.group.end()
    except DeviceError as error:
        print(error)
        assert error.code is Error.BUSY and f"{keeper.worker} (" in str(error)
    else:
        raise AssertionError("the session ended although a worker has the device")
    assert code(keeper.group.begin) is Error.BUSY, "it is not given again"
    assert code(keeper.group.end) is Error.BUSY
    keeper.kill()
    keeper.group.end()
    keeper.group.end()
    keeper.check_next_session()


def mapping_only(function: VfioFunction, sock: socket.socket) -> None:
    """Closes the descriptor, but not what it has mapped."""
    store(function, ID, 0)
    os.close(function.fileno())
    for name in Path("/proc/self/fd").iterdir():  # mmap's own copy
        with suppress(OSError):
            if "vfio" in os.readlink(name):
                os.close(int(name.name))
    assert not open_files()
    sock.send(b"mapped")
    signal.pause()


@clause("LIFE-14")
def check_mapping_that_is_left() -> None:
    """A mapping of a BAR without any descriptor holds the session too."""
    keeper = Keeper(mapping_only)
    assert keeper.said == b"mapped"
    keeper.safe_order()
    assert code(keeper.group.end) is Error.BUSY
    keeper.kill()
    keeper.group.end()
    keeper.check_next_session()


@clause("LIFE-14")
def check_descriptor_in_flight() -> None:
    """A worker that sent its descriptor on, to where nobody has received it yet, and died: not given again until it is gone."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def leak(function: VfioFunction, sock: socket.socket) -> None:
        socket.send_fds(here, [b"x"], [function.fileno()])
        sock.send(b"leaked")
        signal.pause()

    keeper = Keeper(leak)
    here.close()
    keeper.kill()
    keeper.safe_order()
    try:
        keeper.group.end()
    except DeviceError as error:
        print(error)
        assert error.code is Error.BUSY and "no process that can be seen" in str(error)
    else:
        raise AssertionError("the session ended although a descriptor is in flight")
    there.close()
    keeper.group.end()
    keeper.check_next_session()


@clause("LIFE-10")
def check_what_an_exploited_worker_put_on() -> None:
    """INTx, which nobody here enables, and MASTER: the keeper puts off what it knows nothing of."""

    def exploited(function: VfioFunction, sock: socket.socket) -> None:
        function.config_write(COMMAND, 2, COMMAND_MEM | COMMAND_MASTER)  # and INTX_DISABLE off
        flags = abi.VFIO_IRQ_SET_DATA_EVENTFD | abi.VFIO_IRQ_SET_ACTION_TRIGGER
        request = abi.with_fds(
            abi.IrqSet(flags=flags, index=abi.VFIO_PCI_INTX_IRQ_INDEX, start=0, count=1), [eventfd()]
        )
        fcntl.ioctl(function.fileno(), abi.VFIO_DEVICE_SET_IRQS, request)
        store(function, RAISE, 1)
        sock.send(b"done")
        signal.pause()

    keeper = Keeper(exploited)
    assert keeper.said == b"done"
    assert code(keeper.function.irq_set, VectorType.MSI, 0, [eventfd()]) is Error.OP_FAILED  # the kernel: INTx is on
    keeper.kill()
    quiet.interrupts_off(keeper.function)
    keeper.function.irq_set(VectorType.MSI, 0, [eventfd()])
    keeper.safe_order()
    keeper.group.end()
    keeper.check_next_session()


def check_worker_drives_the_device() -> None:
    """What a worker does by itself: registers, interrupts, resets; and what it cannot, it asks for."""

    def drive(function: VfioFunction, sock: socket.socket) -> None:
        assert load(function, ID) == 0x010000ED
        (bar,) = function.bars
        (area,) = bar.areas
        assert os.pread(area.fd, 4, area.position + ID) == (0x010000ED).to_bytes(4, "little")
        fd = eventfd()
        function.irq_set(VectorType.MSI, 0, [fd])
        master(function)
        store(function, RAISE, 1)
        assert signalled(fd) == 1
        dma(function, WINDOW, EDU_BUFFER, 8, 0)
        dma(function, EDU_BUFFER, WINDOW + mmap.PAGESIZE, 8, DMA_TO_MEMORY)
        assert function.reset() is ResetMethod.BUS  # by VFIO_DEVICE_RESET: nothing had to be selected
        store(function, RAISE, 1)
        assert signalled(fd, QUIET) == 0
        assert code(function.map_dma, 0, WINDOW, 0) is Error.OP_FAILED
        sock.send(b"driven")
        function.close()

    keeper = Keeper(drive)
    assert keeper.said == b"driven"
    os.waitpid(keeper.worker, 0)
    keeper.safe_order()
    keeper.group.end()
    keeper.check_next_session()


def check_req_event() -> None:
    """The kernel asks for the device, by the eventfd ``req``, when somebody unbinds it."""
    (bdf,) = edus()
    group = Group(iommu_group(str(bdf)))
    group.begin()
    function = acquire(group, bdf)
    req = function.events()["req"]
    assert function.events()["req"] == req
    if (child := os.fork()) == 0:
        for fd in open_files():
            os.close(fd)
        with suppress(OSError):
            Path(f"/sys/bus/pci/devices/{bdf}/driver/unbind").write_text(
                str(bdf)
            )  # returns when the device is let go of
        os._exit(0)
    assert signalled(req) >= 1
    function.close()
    group.end()
    group.close()
    os.waitpid(child, 0)
    bind_all()
    assert not open_files()
    try:
        os.fstat(req)
    except OSError as error:
        assert error.errno == errno.EBADF
    else:
        raise AssertionError("the eventfd is still open")
