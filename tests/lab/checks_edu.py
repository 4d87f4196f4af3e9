# SPDX-License-Identifier: MIT
"""edu behind VFIO and VT-d, served by one process and driven by another with the driver of the demo."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from pcisplit import pci
from pcisplit.demo import show
from pcisplit.demo.edu_driver import BUFFER, DMA_TO_MEMORY, RAISED_BY_DMA, Edu
from pcisplit.front import RemoteDevice, Session
from pcisplit.proto.errors import AccessError, MeetingRefused
from pcisplit.wire import Error

from .check import PCI, bind_vfio, clause, dmesg, dmesg_end, find_device, wait_until
from .serving import PATIENCE, SECONDS, Serving

DEVICES = [
    "edu,addr=0x10",
    "edu,addr=0x12",
    "pcie-root-port,id=rp1,chassis=1,slot=1,addr=0x11",
    "edu,bus=rp1",
]

BARE, KEPT, PORT = range(3)  # the devices in the order of their addresses
FRONT = 1000  # uid and gid of a front that is not root
STRANGER = 2000

_backends: dict[str, Serving] = {}


def setup() -> None:
    """One backend for the edu behind a port and one without a reset; another, which does without resets."""
    bare, kept, port = find_device(0x1234, 0x11E8)
    for name in (bare, kept, port):
        bind_vfio(name)
    devices = [f"port={port},id=1234:11e8,uid=0,uid={FRONT}", f"bare={bare}"]
    _backends["strict"] = Serving(devices, gid=FRONT)
    _backends["lenient"] = Serving([f"kept={kept}"], "--allow-no-reset")
    for backend in _backends.values():
        backend.ready()


@contextmanager
def session_with(name: str, backend: str = "strict") -> Iterator[tuple[Session, RemoteDevice]]:
    with _backends[backend].connect(name) as session:
        yield session, session.acquire(name)


@contextmanager
def driving(name: str = "port", backend: str = "strict") -> Iterator[Edu]:
    with session_with(name, backend) as (session, device):
        yield Edu(session, device, PATIENCE)


def denied(call: Callable[..., object], *arguments: object) -> int:
    """The rule by which policy refuses a call."""
    try:
        call(*arguments)
    except AccessError as refusal:
        print(refusal)
        assert refusal.code is Error.DENIED
        return refusal.rule
    raise AssertionError(f"{call}{arguments} was not refused")


def hardware(offset: int, width: int, which: int = PORT) -> int:
    """What the configuration space of an edu holds, as the kernel sees it."""
    name = find_device(0x1234, 0x11E8)[which]
    with Path(PCI, "devices", name, "config").open("rb", buffering=0) as config:
        return int.from_bytes(os.pread(config.fileno(), width, offset), "little")


def check_the_demo() -> None:
    """``pcisplit demo --socket`` on real VFIO: every step of it holds, and the fault that it makes is in dmesg."""
    before, said = dmesg_end(), io.StringIO()
    with redirect_stdout(said):
        code = show.run(_backends["strict"].path, "port", as_json=True)
    report = json.loads(said.getvalue())
    for step in report["steps"]:
        print(step["step"], step["result"], f"{step['messages']} messages, {step['microseconds']:.0f} us")
    assert code == 0, report
    assert report["id"] == "1234:11e8"
    wait_until(lambda: dma_faults(before), SECONDS, "a DMAR fault")


def check_driver() -> None:
    """Identity, liveness, factorials polled and by MSI, interrupts, DMA: the driver's whole file."""
    with driving() as edu:
        assert edu.identity() == 0x010000ED
        assert edu.alive() and edu.alive(0)
        assert edu.factorial(12) == 479001600
        edu.enable_interrupts()
        assert edu.factorial_by_interrupt(10) == 3628800
        for value in (1, 2, 0x80000000):
            edu.raise_interrupt(value)
            assert edu.wait_interrupt(value) == value
        assert edu.interrupts_seen == 4
        edu.disable_interrupts()
        assert edu.factorial(34) == 0
        assert edu.irq.poll() == 0


@clause("DMA-3")
def check_dma() -> None:
    """Octets go through VT-d into the device and back to another place; polled and by interrupt; to the window's ends."""
    with driving() as edu:
        count = 2048
        buffer = edu.session.dma.alloc(edu.session.dma.size)
        first, last = os.urandom(count), os.urandom(count)
        buffer.memory[:count] = first
        edu.dma_to_device(buffer.iova, count)
        edu.dma_from_device(buffer.iova + buffer.size - count, count)
        assert bytes(buffer.memory[-count:]) == first
        edu.enable_interrupts()
        buffer.memory[-count:] = last
        edu.dma_to_device(buffer.iova + buffer.size - count, count)
        edu.dma_from_device(buffer.iova + 4096, count)
        assert bytes(buffer.memory[4096 : 4096 + count]) == last
        assert edu.interrupts_seen == 2
        assert not any(buffer.memory[4096 + count : -count]), "the device wrote where it was not told to"


def dma_faults(since: int) -> list[str]:
    """DMAR faults in the kernel's log: ``DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x300000``."""
    return [line for line in dmesg(since) if re.search(r"DMAR: \[DMA (Read|Write)[^]]*\] Request device", line)]


@clause("DMA-5")
def check_dma_fault() -> None:
    """Outside of the window a write and a read fault in VT-d, named in dmesg; the session and the device go on."""
    with driving() as edu:
        (window,) = edu.session.info.windows
        buffer = edu.session.dma.alloc(4096)
        faulting = (("Write", edu.dma_from_device, window.iova + window.size), ("Read", edu.dma_to_device, 0x1000))
        for kind, transfer, iova in faulting:
            line = _provoke(transfer, iova)
            print(line)
            assert f"[DMA {kind}" in line and "[01:00.0]" in line and f"addr {iova:#x}" in line
        buffer.memory[:64] = b"\x5a" * 64
        edu.dma_to_device(buffer.iova, 64)
        edu.dma_from_device(buffer.iova + 64, 64)
        assert bytes(buffer.memory[:128]) == b"\x5a" * 128
        assert edu.alive()


def _provoke(transfer: Callable[[int, int], None], iova: int) -> str:
    """The kernel's line about a transfer that faults. It writes a few in five seconds, so the transfer is repeated."""
    before = dmesg_end()

    def attempt() -> list[str]:
        transfer(iova, 64)
        return dma_faults(before)

    return wait_until(attempt, SECONDS, "a DMAR fault")[0]


@clause("DMA-6", "CFG-6")
def check_master_off() -> None:
    """While the front's MASTER is off the device reaches no memory, which hardware sees to; nor does it interrupt."""
    with driving() as edu:
        buffer, config = edu.session.dma.alloc(4096), edu.device.config
        buffer.memory[:64] = b"\x11" * 64
        edu.dma_to_device(buffer.iova, 64)
        edu.enable_interrupts()
        config.write16(pci.COMMAND, pci.COMMAND_MEM)
        assert not hardware(pci.COMMAND, 2) & pci.COMMAND_MASTER
        edu.start_dma(BUFFER, buffer.iova + 1024, 64, DMA_TO_MEMORY)
        wait_until(lambda: not edu.dma_running(), SECONDS, "the end of a transfer without bus master")
        assert edu.interrupt_status() == RAISED_BY_DMA, "the transfer ended otherwise than expected"
        assert not any(buffer.memory[1024:2048])
        assert edu.irq.poll() == 0
        edu.acknowledge(RAISED_BY_DMA)
        config.write16(pci.COMMAND, pci.COMMAND_MEM | pci.COMMAND_MASTER)
        assert hardware(pci.COMMAND, 2) & pci.COMMAND_MASTER
        edu.dma_from_device(buffer.iova + 1024, 64)
        assert bytes(buffer.memory[1024:1088]) == b"\x11" * 64


@clause("CFG-3", "CFG-5", "CFG-6", "CFG-7", "CFG-8", "CFG-9")
def check_config_policy() -> None:
    """What policy refuses names its rule and changes nothing; decode and BAR addresses never reach the hardware."""
    backend = _backends["strict"]
    since = len(backend.log)
    with driving() as edu:
        config = edu.device.config
        before = [hardware(at, 4) for at in range(0, 256, 4)]
        assert denied(config.write32, pci.VENDOR_ID, 0x10FB8086) == 1
        assert denied(config.write16, pci.COMMAND, 0xFFFF) == 2
        assert denied(config.write16, 0x42, 0x0001) == 10  # MSI control: interrupts are the back's
        assert denied(config.write32, 0x44, 0xFEE00000) == 10  # MSI address
        assert denied(config.write32, 0x80, 1) == 12
        config.write32(pci.BAR0, 0xFFFFFFFF)
        assert config.read32(pci.BAR0) == 0xFFF00000, "the size of 1 MiB"
        config.write32(pci.BAR0, 0xABC00000)
        config.write16(pci.COMMAND, pci.COMMAND_MASTER)
        try:
            edu.identity()
        except AccessError as refusal:
            assert refusal.code is Error.DECODE_DISABLED
        else:
            raise AssertionError("a BAR was read while the front's MEM was off")
        assert [hardware(at, 4) for at in range(0, 256, 4)] == before
        assert hardware(pci.COMMAND, 2) & pci.COMMAND_MEM
        config.write16(pci.COMMAND, pci.COMMAND_MEM | pci.COMMAND_MASTER)
        assert edu.alive()
    refused = backend.wait_log("session over", since)["refused"]["port"]
    assert refused == {"ids": 1, "command": 1, "capability": 2, "gap": 1}, refused


@clause("LIFE-21")
def check_reset_by_the_front() -> None:
    """A reset of its bus: MASTER and interrupts are off, decode has to be asked for again, a generation passes."""
    with driving() as edu:
        edu.enable_interrupts()
        edu.raise_interrupt(1)
        edu.wait_interrupt(1)
        generation = edu.device.generation
        edu.device.reset()
        assert edu.device.generation == generation + 1
        assert edu.device.config.read16(pci.COMMAND) == 0
        assert not hardware(pci.COMMAND, 2) & pci.COMMAND_MASTER
        again = Edu(edu.session, edu.device, PATIENCE)
        again.enable_interrupts()
        assert again.factorial_by_interrupt(5) == 120


@clause("MEET-10")
def check_a_front_with_another_uid() -> None:
    """A front that is not root, and holds nothing but the session, drives the device; a third one is refused."""

    def front() -> None:
        assert not os.access(f"/proc/{_backends['strict'].pid}/fd", os.R_OK)
        with driving() as edu:
            assert edu.alive()
            edu.enable_interrupts()
            assert edu.factorial_by_interrupt(7) == 5040
            buffer = edu.session.dma.alloc(128)
            buffer.memory[:64] = b"\x77" * 64
            edu.dma_to_device(buffer.iova, 64)
            edu.dma_from_device(buffer.iova + 64, 64)
            assert bytes(buffer.memory) == b"\x77" * 128

    def stranger() -> None:
        try:
            driving().__enter__()
        except MeetingRefused as refusal:
            assert refusal.code is Error.ACCESS_DENIED, refusal
        else:
            raise AssertionError("a stranger got the device")

    def locked_out() -> None:
        try:
            driving().__enter__()
        except PermissionError:
            return
        raise AssertionError("somebody without its group reached the socket")

    since = len(_backends["strict"].log)
    _as_user(FRONT, FRONT, front)
    assert _backends["strict"].wait_log("session", since)["uid"] == FRONT
    _as_user(STRANGER, FRONT, stranger)
    _as_user(STRANGER, STRANGER, locked_out)


def _as_user(uid: int, gid: int, action: Callable[[], None]) -> None:
    """Do it in a process of another user. AssertionError if it fails."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            action()
            code = 0
        except BaseException as problem:
            print(f"uid {uid}, gid {gid}: {problem!r}", flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a front of uid {uid} failed"


@clause("LIFE-12", "MEET-7")
def check_no_reset_is_quarantine() -> None:
    """Without a reset edu serves one session; the next is refused with what to do about it."""
    with driving("bare") as edu:
        assert not edu.device.resettable
        assert edu.factorial(6) == 720
        try:
            edu.device.reset()
        except AccessError as refusal:
            assert refusal.code is Error.NO_RESET
    try:
        with session_with("bare"):
            raise AssertionError("a device that was not reset was given to the next session")
    except MeetingRefused as refusal:
        print(refusal)
        assert refusal.code is Error.QUARANTINED
        assert "--allow-no-reset" in str(refusal)
    with driving() as edu:  # the other device of this backend is not affected
        assert edu.alive()


@clause("LIFE-12")
def check_no_reset_allowed() -> None:
    """With --allow-no-reset it is offered again, and what the teardown could do is done: MASTER is off."""
    for n in (5, 6):
        with driving("kept", "lenient") as edu:
            assert edu.factorial(n) == {5: 120, 6: 720}[n]
    with session_with("kept", "lenient"):
        assert not hardware(pci.COMMAND, 2, KEPT) & pci.COMMAND_MASTER


def check_backends_end_well() -> None:
    """SIGTERM ends them with 0, without a word of trouble, and VFIO's groups are free."""
    for backend in _backends.values():
        backend.stop()
    for name in find_device(0x1234, 0x11E8):
        os.close(os.open(f"/dev/vfio/{Path(PCI, 'devices', name, 'iommu_group').readlink().name}", os.O_RDWR))
