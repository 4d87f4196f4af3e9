# SPDX-License-Identifier: MIT
"""The contract of the device seam over every model; over VFIO it runs in the lab (tests/lab/checks_vfio.py)."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pcisplit import pci
from pcisplit.back.devices import quiet
from pcisplit.back.devices.device import Device, Function
from pcisplit.back.devices.models import DumpModel, make_model
from pcisplit.back.devices.models.ram import R_INTERRUPT
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error, ResetMethod, VectorType
from tests.device_contract import check_device, code

_DUMP = "\n".join(
    ["00:1f.2 SATA controller: an example", "\tRegion 1: Memory at fe000000 (32-bit, non-prefetchable) [size=8K]"]
    + [
        f"{at:02x}: {'86 80 22 29 06 04' if at == 0 else '00 ' * 6}{' 00' * 10}".replace("  ", " ")
        for at in range(0, 256, 16)
    ]
)


@pytest.fixture
def dump(tmp_path: Path) -> str:
    path = tmp_path / "dump"
    path.write_text(_DUMP)
    return str(path)


@pytest.mark.parametrize(
    "name, options", [("edu", {}), ("edu", {"reset": "no"}), ("ram", {}), ("ram", {"reset": "no", "size": "4096"})]
)
def test_a_model_keeps_the_contract(name: str, options: dict[str, str]) -> None:
    check_device(lambda: make_model(name, options))


def test_a_dump_keeps_the_contract(dump: str) -> None:
    check_device(lambda: DumpModel(dump))


def test_a_dump_of_a_device_at_work_has_master_off(dump: str) -> None:
    function = DumpModel(dump).acquire()
    assert function.config_read(pci.COMMAND, 2) == 0x402
    function.close()


@pytest.mark.parametrize("kind", [VectorType.MSI, VectorType.MSIX])
def test_interrupts_come_by_the_kind_that_is_on_and_only_while_it_is(kind: VectorType) -> None:
    function = make_model("ram", {}).acquire()
    old, new = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))

    def raised(fd: int) -> int:
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0

    try:
        function.irq_set(kind, 0, [old])
        function.bar_write(2, R_INTERRUPT, 4, 1)
        assert (raised(old), raised(new)) == (1, 0)
        function.irq_set(kind, 0, [new])
        function.bar_write(2, R_INTERRUPT, 4, 1)
        assert (raised(old), raised(new)) == (0, 1)
        function.irq_set(kind, 0, ())
        function.bar_write(2, R_INTERRUPT, 4, 1)
        assert (raised(old), raised(new)) == (0, 0)
        function.irq_set(kind, 0, [old])
        function.reset()
        function.bar_write(2, R_INTERRUPT, 4, 1)
        assert (raised(old), raised(new)) == (0, 0)
    finally:
        function.close()
        os.close(old)
        os.close(new)


def test_the_ram_model_has_the_vectors_of_its_capabilities() -> None:
    function = make_model("ram", {}).acquire()
    assert function.interrupts == (0, 1, 4)
    assert make_model("edu", {}).acquire().interrupts == (1, 1, 0)
    function.close()


def test_a_model_that_gets_no_thread_can_be_acquired_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A5 of a model: what acquire could not have is nobody's afterwards."""
    model = make_model("edu", {})

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            model.acquire()
    model.acquire().close()


# -- the contract can fail -----------------------------------------------------------------------------------------


def _broken(name: str, value: object) -> Callable[[], Device]:
    def make() -> Device:
        model = make_model("ram", {})
        setattr(model, name, value)
        return model

    return make


@pytest.mark.parametrize(
    "name, value",
    [
        ("unmap_dma", lambda: 0),
        ("irq_set", lambda kind, start, eventfds: None),
        ("reset", lambda method=None: ResetMethod.MODEL),
        ("power", lambda state: None),
        ("config_write", lambda offset, width, value: None),
        ("dma_bits", 8),
        ("config_size", 128),
        ("events", lambda: {"other": 0}),
    ],
)
def test_a_device_that_breaks_it_is_found_out(name: str, value: object) -> None:
    with pytest.raises(AssertionError):
        check_device(_broken(name, value))


# -- the steps of the safe order -----------------------------------------------------------------------------------


class Express:
    """A function that is nothing but configuration space with a PCI Express capability at 0x40."""

    spec = "express"

    def __init__(self, pending: int = 0, stubborn: bool = False) -> None:
        self.config = bytearray(256)
        self.config[pci.STATUS] = pci.STATUS_CAP_LIST
        self.config[pci.CAP_POINTER], self.config[0x40] = 0x40, pci.CAP_PCIE
        self.config[pci.COMMAND] = pci.COMMAND_MASTER | pci.COMMAND_MEM
        self.pending, self.stubborn, self.looks = pending, stubborn, 0
        self.kinds: list[VectorType] = []

    def config_read(self, offset: int, width: int) -> int:
        if offset == 0x40 + pci.PCIE_DEVSTA:
            self.looks += 1
            self.config[offset] = pci.PCIE_DEVSTA_TRANSACTIONS_PENDING if self.looks <= self.pending else 0
        return int.from_bytes(self.config[offset : offset + width], "little")

    def config_write(self, offset: int, width: int, value: int) -> None:
        if not self.stubborn:
            self.config[offset : offset + width] = value.to_bytes(width, "little")

    def irq_set(self, kind: VectorType, start: int, eventfds: tuple[int, ...]) -> None:
        self.kinds.append(kind)
        if self.stubborn:
            raise DeviceError(Error.OP_FAILED, f"{kind.name} stays on")


def steps(device: Express) -> Function:
    return device  # type: ignore[return-value] # has what the steps use


def test_waiting_for_transactions_ends_when_they_do_and_does_not_spin() -> None:
    device = Express(pending=4)
    assert quiet.wait_transactions(steps(device)) == "none pending"
    assert device.looks == 5
    for_ever = Express(pending=1 << 40)
    with pytest.raises(DeviceError, match="still pending after 1 s"):
        quiet.wait_transactions(steps(for_ever))
    assert for_ever.looks < 100  # without a pause they are hundreds of thousands


def test_master_off_is_seen_to_be_off() -> None:
    device = Express()
    quiet.master_off(steps(device))
    assert device.config_read(pci.COMMAND, 2) == pci.COMMAND_MEM | pci.COMMAND_INTX_DISABLE
    assert code(quiet.master_off, steps(Express(stubborn=True))) is Error.OP_FAILED


def test_every_kind_of_interrupt_is_put_off_also_when_one_fails() -> None:
    device = Express(stubborn=True)
    assert code(quiet.interrupts_off, steps(device)) is Error.OP_FAILED
    assert device.kinds == list(VectorType)
