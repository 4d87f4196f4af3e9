# SPDX-License-Identifier: MIT
"""Interrupts and resets of the device seam on real VFIO: MSI, MSI-X, every method that the lab's devices have."""

from __future__ import annotations

import os
import signal
import time

from pcisplit.back.channel import Channel, ChannelClosed, make_pair, request
from pcisplit.back.devices.vfio.device import VfioHost
from pcisplit.back.keeper import main as keeper
from pcisplit.pci import COMMAND, COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MEM
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error, ResetMethod, VectorType

from .check import PCI, bind_vfio, clause, iommu_group
from .vfio import (
    ACKNOWLEDGE,
    E1000E,
    ID,
    NVME,
    QUIET,
    RAISE,
    WINDOW,
    XHCI,
    Memory,
    acquired,
    bind_all,
    code,
    edus,
    eventfd,
    load,
    master,
    only,
    refusal,
    signalled,
    store,
    unbind,
)

DEVICES = [
    "edu,addr=0x10",
    "pcie-root-port,id=alone,chassis=1,slot=1,addr=0x11",
    "edu,bus=alone",
    "-drive if=none,id=disk,file=null-co://,format=raw",
    "nvme,drive=disk,serial=lab,addr=0x14",
    "pcie-root-port,id=shared,chassis=2,slot=2,addr=0x15",
    "edu,bus=shared,addr=0x0.0,multifunction=on",
    "edu,bus=shared,addr=0x0.1",
    "nec-usb-xhci,addr=0x16",
    "pcie-root-port,id=net,chassis=3,slot=3,addr=0x17,x-speed=2_5",
    "e1000e,bus=net",
]

NVME_CC, NVME_CC_EN = 0x14, 1 << 0


def setup() -> None:
    """Gives all devices to vfio-pci for all checks."""
    bind_all()


def check_msi() -> None:
    """An MSI signals the eventfd once; enabling again replaces it; nothing comes after disabling."""
    with acquired(edus()[0]) as function:
        old, new = eventfd(), eventfd()
        function.irq_set(VectorType.MSI, 0, ())
        master(function)
        assert code(function.irq_set, VectorType.MSI, 0, [old, new]) is Error.TOO_MANY_VECTORS
        assert code(function.irq_set, VectorType.INTX, 0, [old]) is Error.NOT_IMPLEMENTED
        function.irq_set(VectorType.MSI, 0, [old])
        store(function, RAISE, 1)
        assert signalled(old) == 1
        assert signalled(old, QUIET) == 0
        store(function, ACKNOWLEDGE, 1)
        function.irq_set(VectorType.MSI, 0, [new])
        store(function, RAISE, 1)
        assert signalled(new) == 1
        assert signalled(old, QUIET) == 0
        function.irq_set(VectorType.MSI, 0, ())
        store(function, RAISE, 1)
        assert signalled(new, QUIET) == 0
        function.irq_set(VectorType.MSI, 0, ())
        store(function, ACKNOWLEDGE, 1)
        function.irq_set(VectorType.MSI, 0, [old])
        store(function, RAISE, 1)
        assert signalled(old) == 1


def check_many_vectors() -> None:
    """16 MSI and 16 MSI-X vectors of one controller: as many as the host gives; of MSI-X some, then more, then others."""
    with acquired(only(XHCI)) as function:
        print(function.interrupts)
        assert function.interrupts == (1, 16, 16)
        fds = [eventfd() for _ in range(16)]
        function.irq_set(VectorType.MSIX, 0, fds[:2])
        function.irq_set(VectorType.MSIX, 1, fds[2:16])  # more than are on: all of them anew
        function.irq_set(VectorType.MSIX, 3, [-1, fds[0]])
        function.irq_set(VectorType.MSIX, 0, ())
        try:
            function.irq_set(VectorType.MSI, 0, fds)
        except DeviceError as error:  # several MSI vectors take interrupt remapping, and there may be none
            print(error)
            assert error.code is Error.TOO_MANY_VECTORS
            function.irq_set(VectorType.MSI, 0, fds[:1])
        function.irq_set(VectorType.MSI, 0, ())


@clause("LIFE-21", "LIFE-26")
def check_nvme_reset() -> None:
    """A function level reset clears CC.EN, and leaves decode on and MASTER off although it was on before."""
    with acquired(only(NVME)) as function:
        print([method.name for method in function.reset_methods])
        assert function.reset_methods[0] is ResetMethod.FLR
        for method in (None, ResetMethod.FLR):
            master(function)
            store(function, NVME_CC, NVME_CC_EN)
            assert load(function, NVME_CC) & NVME_CC_EN
            begun = time.monotonic()
            assert function.reset(method) is ResetMethod.FLR
            print(f"{time.monotonic() - begun:.3f} s")
            assert load(function, NVME_CC) & NVME_CC_EN == 0
            assert function.config_read(COMMAND, 2) & 0x407 == COMMAND_MEM | COMMAND_INTX_DISABLE
        assert code(function.reset, ResetMethod.AF) is Error.NO_RESET


@clause("LIFE-26")
def check_choice_of_reset() -> None:
    """What the operator chose, and nothing else, is what the kernel has selected while the device is open; then all again."""
    bdf = only(E1000E)
    file = PCI / "devices" / str(bdf) / "reset_method"
    before = file.read_text().split()
    print(before)
    assert before == ["pm", "bus"]
    for choice, selected, methods in (
        ("", ["pm"], (ResetMethod.PM, ResetMethod.BUS)),
        ("pm", ["pm"], (ResetMethod.PM,)),
        ("bus", ["bus"], (ResetMethod.BUS,)),
        ("none", [], ()),
    ):
        with acquired(bdf, reset=choice) as function:
            assert (file.read_text().split(), function.reset_methods) == (selected, methods), choice
            for method in methods:
                assert function.reset(method) is method
                assert file.read_text().split() == [method.name.lower()]
            if not methods:
                assert code(function.reset) is Error.NO_RESET
        assert file.read_text().split() == before
    assert "no reset by flr; the kernel has: pm, bus" in refusal(bdf, reset="flr")
    assert file.read_text().split() == before


@clause("LIFE-26")
def check_a_bus_that_is_chosen() -> None:
    """Two functions have no reset of their own; their bus is VFIO's, with a choice and without, and no one else's."""
    first = edus()[2]
    for choice in ("", "bus"):
        with acquired(first, reset=choice) as function:
            assert function.reset_methods == (ResetMethod.BUS,)
            assert function.reset() is ResetMethod.BUS
    with acquired(first, reset="none") as function:
        assert function.reset_methods == ()


@clause("LIFE-21")
def check_reset_of_each_edu() -> None:
    """On the root bus edu has no reset; behind a port it has its bus's; two functions have it if VFIO has both."""
    root, port, first, second = edus()
    with acquired(root) as function:
        assert not function.reset_methods
        assert code(function.reset) is Error.NO_RESET
    for bdf, method in ((port, ResetMethod.BUS), (first, ResetMethod.BUS)):
        with acquired(bdf) as function:
            assert function.reset_methods == (method,)
            master(function)
            fd = eventfd()
            function.irq_set(VectorType.MSI, 0, [fd])
            assert function.reset() is method
            assert function.config_read(COMMAND, 2) & 0x407 == COMMAND_MEM | COMMAND_INTX_DISABLE
            assert load(function, ID) == 0x010000ED
            master(function)
            store(function, RAISE, 1)  # the reset has ended the interrupts of the old generation
            assert signalled(fd, QUIET) == 0
            store(function, ACKNOWLEDGE, 1)
            function.irq_set(VectorType.MSI, 0, [fd])
            store(function, RAISE, 1)
            assert signalled(fd) == 1
    unbind(str(second))
    with acquired(first) as function:
        assert not function.reset_methods
    bind_vfio(str(second))


def check_reset_of_shared_bus() -> None:
    """The reset of one function's bus leaves its neighbour of the same session usable: mappings, COMMAND, DMA."""
    host, (first, second) = VfioHost(), edus()[2:]
    with acquired(first, host=host) as one, acquired(second, host=host) as two:
        memory = Memory()
        memory.give(two)
        master(two)
        assert one.reset() is ResetMethod.BUS
        assert load(two, ID) == 0x010000ED
        print(hex(two.config_read(COMMAND, 2)))
        assert two.config_read(COMMAND, 2) & COMMAND_MASTER  # restored by the kernel, as before
        assert memory.round_trip(two, b"neighbour") == b"neighbour"
        assert two.unmap_dma() == WINDOW


@clause("LIFE-26", "THR-16")
def check_resets_that_a_worker_may_not_ask_for() -> None:
    """A keeper whose operator chose `pm` refuses its worker every other reset, also the bus's, which VFIO would do."""
    bdf = only(E1000E)
    file = PCI / "devices" / str(bdf) / "reset_method"
    before = file.read_text()
    theirs, ours = make_pair()
    if (pid := os.fork()) == 0:
        ours.close()
        try:
            keeper.run(Channel(theirs))
        except ChannelClosed:
            pass
        finally:
            os._exit(0)
    theirs.close()
    if (worker := os.fork()) == 0:
        signal.pause()
    channel = Channel(ours)

    def ask(do: str, *fds: int, **arguments: object) -> Error:
        channel.send(request(1, do, **arguments), fds)
        said, sent = channel.recv()
        for fd in sent:
            os.close(fd)
        print(do, arguments, {key: said[key] for key in said if key == "text"})
        return Error(said.get("error", 0))

    for choice, may in (("pm", {ResetMethod.PM}), ("", {ResetMethod.PM, ResetMethod.BUS}), ("none", set())):
        what = {"bdf": str(bdf), "group": iommu_group(str(bdf)), "id": list(E1000E), "reset": choice}
        pidfd = os.pidfd_open(worker)
        assert ask("open", pidfd, devices=[what]) is Error.SUCCESS
        os.close(pidfd)
        for method in ResetMethod:
            refused = ask("select_reset", bdf=str(bdf), method=method) is Error.NO_RESET
            assert refused == (method not in may), (choice, method)
            assert set(file.read_text().split()) <= {one.name.lower() for one in may}
        refused = ask("hot_reset", bdf=str(bdf)) is Error.NO_RESET
        assert refused == (ResetMethod.BUS not in may), choice
        assert ask("finish") is Error.SUCCESS
        assert file.read_text() == before
        os.waitpid(worker, 0)
        if (worker := os.fork()) == 0:
            signal.pause()
    assert ask("shut") is Error.SUCCESS
    os.kill(worker, signal.SIGKILL)
    for child in (worker, pid):
        os.waitpid(child, 0)
