# SPDX-License-Identifier: MIT
"""NVMe: a real driver's start and a command through VT-d, and the proof that the end of a session resets the device."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pcisplit import pci
from pcisplit.front import Bar, DmaBuffer, RemoteDevice, Session
from pcisplit.proto.errors import AccessError
from pcisplit.wire import Error

from .check import bind_vfio, clause, find_device, wait_until
from .serving import SECONDS, Serving

DEVICES = [
    "-drive if=none,id=d,file=null-co://,format=raw,file.size=1M",
    "nvme,drive=d,serial=pcisplit,addr=0x10",
]

# NVM Express Base Specification 1.4, 3.1: registers of BAR 0; 4.2 and 4.6: queue entries; 5.15: Identify.
CAP, VS, CC, CSTS, AQA, ASQ, ACQ, SUBMISSION_TAIL = 0x00, 0x08, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
CC_EN = 1 << 0
CC_ENTRY_SIZES = 6 << 16 | 4 << 20  # 64 octets of submission, 16 of completion
CSTS_RDY = 1 << 0
IDENTIFY, IDENTIFY_CONTROLLER = 0x06, 1
ENTRIES = 8

TRACING = Path("/sys/kernel/tracing")
CLOSE = "vfio_pci_core_close_device"

_backends: list[Serving] = []


def setup() -> None:
    """One backend, and the kernel's tracing."""
    subprocess.run(["mount", "-t", "tracefs", "none", str(TRACING)], check=True)
    (nvme,) = find_device(0x1B36, 0x0010)
    bind_vfio(nvme)
    _backends.append(Serving([f"nvme={nvme}"]).ready())


def connect() -> tuple[Session, RemoteDevice]:
    session = _backends[0].connect("nvme", dma_bits=64)
    nvme = session.acquire("nvme")
    nvme.config.write16(pci.COMMAND, pci.COMMAND_MEM | pci.COMMAND_MASTER)
    return session, nvme


def start(session: Session, registers: Bar) -> tuple[DmaBuffer, DmaBuffer]:
    """Enable the controller with its two admin queues, which are returned."""
    submission, completion = (session.dma.alloc(4096, align=4096) for _ in range(2))
    assert not registers.read32(CC) & CC_EN
    registers.write32(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1))
    registers.write64(ASQ, submission.iova)
    registers.write64(ACQ, completion.iova)
    registers.write32(CC, CC_ENTRY_SIZES | CC_EN)
    wait_until(lambda: registers.read32(CSTS) & CSTS_RDY, SECONDS, "CSTS.RDY")
    return submission, completion


def identify(session: Session, registers: Bar) -> bytes:
    """What the controller says about itself, which it puts into DMA memory."""
    submission, completion = start(session, registers)
    answer = session.dma.alloc(4096, align=4096)
    entry = bytearray(64)
    entry[0], entry[2:4] = IDENTIFY, (0x4711).to_bytes(2, "little")
    entry[24:32] = answer.iova.to_bytes(8, "little")
    entry[40] = IDENTIFY_CONTROLLER
    submission.memory[:64] = entry
    registers.write32(SUBMISSION_TAIL, 1)
    wait_until(lambda: completion.memory[14] & 1, SECONDS, "the completion")
    status = int.from_bytes(completion.memory[14:16], "little") >> 1
    assert bytes(completion.memory[12:14]) == (0x4711).to_bytes(2, "little") and status == 0, hex(status)
    return bytes(answer.memory)


@clause("BAR-3", "DMA-3")
def check_command() -> None:
    """An Identify through an admin queue: registers by messages, queues and data in the session's DMA memory."""
    session, nvme = connect()
    with session:
        registers = nvme.bar(0)
        assert registers.read32(VS) == 0x00010400
        assert registers.read64(CAP) == registers.read32(CAP) | registers.read32(CAP + 4) << 32
        said = identify(session, registers)
        print(said[4:72])
        assert int.from_bytes(said[0:2], "little") == nvme.vendor
        assert said[4:24] == b"pcisplit".ljust(20)


@clause("LIFE-12")
def check_reset_between_sessions() -> None:
    """A controller that is left running is found disabled by the next session."""
    for _ in range(2):
        session, nvme = connect()
        with session:
            registers = nvme.bar(0)
            assert nvme.resettable
            assert not registers.read32(CC) & CC_EN, "the controller still runs"
            start(session, registers)
            assert registers.read32(CC) & CC_EN


@clause("LIFE-9", "LIFE-10", "LIFE-11")
def check_order_of_teardown() -> None:
    """The kernel saw: the reset of opening it, then ours, and only then the end of the DMA mapping, and of the device.

    That the next session finds CC.EN off proves little: VFIO resets the device once more when it is closed.
    """
    backend = _backends[0]
    (name,) = find_device(0x1B36, 0x0010)
    since = len(backend.log)
    with kernel_calls({"reset": "pci_try_reset_function", "unmap": "vfio_unmap_unpin", "close": CLOSE}) as calls:
        session, nvme = connect()
        with session:
            start(session, nvme.bar(0))
    over = backend.wait_log("session over", since)
    print(over["steps"], calls)
    assert calls == ["reset", "reset", "unmap", "close"]
    assert over["problems"] == 0
    order = [re.sub(r" (0000|IOMMU).*", "", step.partition(":")[0]) for step in over["steps"]]
    wanted = ["stop owners", "worker dead", "master off", "reset", "unmap DMA", "close device", "release container"]
    keepers = order[order.index("worker dead") :]
    assert [step for step in keepers if step in wanted] == wanted[1:], order
    assert order.index("stop owners") < order.index("worker dead")
    assert f"reset {name}: flr" in over["steps"]


@contextmanager
def kernel_calls(functions: dict[str, str]) -> Iterator[list[str]]:
    """The calls of these functions of the kernel in the meantime, by the names given to them; filled in at the end."""
    calls: list[str] = []
    (TRACING / "kprobe_events").write_text("".join(f"p:{name} {function}\n" for name, function in functions.items()))
    enable = TRACING / "events" / "kprobes" / "enable"
    (TRACING / "trace").write_text("")
    enable.write_text("1")
    try:
        yield calls
    finally:
        enable.write_text("0")
        calls += re.findall(rf": ({'|'.join(functions)}): \(", (TRACING / "trace").read_text())
        (TRACING / "kprobe_events").write_text("")


@clause("BAR-5")
def check_vector_table_denied() -> None:
    """The MSI-X table and the pending bits are neither read nor written; the registers before them are."""
    session, nvme = connect()
    with session:
        registers = nvme.bar(0)
        at = nvme.config.read8(pci.CAP_POINTER)
        while nvme.config.read8(at) != pci.CAP_MSIX:
            at = nvme.config.read8(at + 1)
        assert at, "nvme has no MSI-X"
        for where in (nvme.config.read32(at + 4), nvme.config.read32(at + 8)):
            assert where & 7 == 0, "in BAR 0"
            print(hex(where))
            assert code(registers.read32, where) is Error.DENIED
            assert code(registers.write32, where, 0) is Error.DENIED
            assert code(registers.read_block, where - 64, 128) is Error.DENIED
        assert code(nvme.config.write16, at + 2, 0x8000) is Error.DENIED
        assert registers.read32(VS) == 0x00010400


def code(call: Callable[..., object], *arguments: object) -> Error:
    """The error with which an access is answered."""
    try:
        result = call(*arguments)
    except AccessError as refusal:
        print(refusal)
        return refusal.code
    raise AssertionError(f"{call}{arguments} gave {result!r}")


def check_backend_ends_well() -> None:
    """SIGTERM ends it with 0."""
    _backends[0].stop()
