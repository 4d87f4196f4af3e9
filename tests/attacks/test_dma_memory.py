# SPDX-License-Identifier: MIT
"""A front takes DMA memory away from under a model, or holds its inode: the model faults, the session ends as always."""

import ctypes
import fcntl
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pcisplit.back.devices.models.edu import EduModel
from pcisplit.back.devices.models.iommu import Fault, SoftwareIommu
from pcisplit.demo.edu_driver import Edu
from pcisplit.ring.region import create_region
from tests.pair import Pair

SIZE, IOVA = 8192, 2 << 20

#: A process that writes into the memfd it inherits, from a page whose fault nobody answers: the write holds the inode's lock
#: until the process is killed. Prints a line when it is about to.
HOLDER = """
import ctypes, fcntl, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
uffd = libc.syscall(323, os.O_CLOEXEC)
if uffd < 0:
    print("unavailable", os.strerror(ctypes.get_errno()), flush=True)
    sys.exit()
fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("QQQ", 0xAA, 0, 0))  # UFFDIO_API
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
view = (ctypes.c_char * 4096).from_buffer(page)
fcntl.ioctl(uffd, 0xC020AA00, struct.pack("QQQQ", ctypes.addressof(view), 4096, 1, 0))  # UFFDIO_REGISTER, missing pages
print("holding", flush=True)
libc.pwrite(int(sys.argv[1]), view, 4096, 0)
"""


def in_time(work: "threading.Thread", seconds: float = 20.0) -> bool:
    work.start()
    work.join(seconds)
    return not work.is_alive()


@pytest.fixture
def holder() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def hold_inode(holder: list[subprocess.Popen[str]], fd: int) -> None:
    """Start a process whose write into `fd` never ends, and wait until it is in it."""
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the system calls are x86-64's")
    command = [sys.executable, "-c", HOLDER, str(fd)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[fd])
    holder.append(process)
    assert process.stdout
    said = process.stdout.readline().split(" ", 1)
    if said[0].strip() != "holding":
        pytest.skip(f"userfaultfd is not available: {said[-1].strip()}")
    deadline = time.monotonic() + 20
    while True:
        with open(f"/proc/{process.pid}/syscall") as file:
            if file.read().split()[0] == "18":  # pwrite64
                return
        assert time.monotonic() < deadline, "the holder does not write"
        os.sched_yield()


@pytest.mark.clause("THR-9", "DMA-6")
def test_memory_that_is_gone_is_a_fault_and_the_device_goes_on() -> None:
    fd = create_region("dma", SIZE)
    iommu = SoftwareIommu("test")
    iommu.map(IOVA, SIZE, fd)
    iommu.master = True
    assert iommu.write(IOVA + 4090, b"across")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    os.ftruncate(fd, 4096)
    assert iommu.read(IOVA + 4090, 12) is None
    assert not iommu.write(IOVA + 5000, b"x")
    assert iommu.read(IOVA + 4090, 6) == b"across"
    assert iommu.faults == [Fault(IOVA + 4090, 12, False, "memory gone"), Fault(IOVA + 5000, 1, True, "memory gone")]
    assert iommu.unmap_all() == SIZE
    os.close(fd)


@pytest.mark.clause("DMA-6")
def test_a_hole_reads_as_zeros_and_can_be_written() -> None:
    fd = create_region("dma", SIZE)
    iommu = SoftwareIommu("test")
    iommu.map(IOVA, SIZE, fd)
    iommu.master = True
    iommu.write(IOVA, b"there")
    libc = ctypes.CDLL(None)
    assert libc.fallocate(fd, 3, ctypes.c_int64(0), ctypes.c_int64(4096)) == 0  # PUNCH_HOLE | KEEP_SIZE
    assert iommu.read(IOVA, 5) == bytes(5)
    assert iommu.write(IOVA, b"again")
    assert iommu.fault_count == 0
    iommu.unmap_all()
    os.close(fd)


@pytest.mark.clause("THR-7")
def test_faults_of_one_session_do_not_silence_those_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("pcisplit.back.log.line", lambda level, event, **_: lines.append(event))
    fd = create_region("dma", SIZE)
    iommu = SoftwareIommu("test")
    iommu.master = True
    for _ in range(2):
        iommu.map(IOVA, SIZE, fd)
        for _ in range(1000):
            assert iommu.read(0, 4) is None
        assert (iommu.fault_count, len(iommu.faults)) == (1000, iommu.FAULTS_KEPT)
        iommu.unmap_all()
    assert len(lines) == 2 * iommu.FAULTS_KEPT
    os.close(fd)


@pytest.mark.clause("THR-11", "LIFE-10")
def test_a_front_that_holds_the_inode_of_dma_memory_does_not_hold_up_the_teardown(
    holder: list[subprocess.Popen[str]],
) -> None:
    """The front's own pwrite waits for ever with the inode locked; a DMA of the device and the teardown must not."""
    device = EduModel({"dma_ms": "0"})
    with Pair(device) as pair:
        edu = Edu(pair.front, pair.front.acquire("dev0"))
        assert pair.front.dma is not None
        buffer = pair.front.dma.alloc(64)
        buffer.memory[:] = bytes(range(64))
        hold_inode(holder, pair._fds[4])
        try:
            for copy in (edu.dma_to_device, edu.dma_from_device):
                dma = threading.Thread(target=copy, args=(buffer.iova, 64), daemon=True)
                assert in_time(dma), "the DMA hangs"
            assert device._buffer[:64] == bytes(range(64)) == bytes(buffer.memory[:64])
            pair.front.dma.free(buffer)
            assert in_time(threading.Thread(target=pair.stop, daemon=True)), "the teardown hangs"
            assert pair.teardown is not None
            assert not pair.teardown.problems
        finally:
            holder[0].kill()  # a red test ends, too
