# SPDX-License-Identifier: MIT
"""Maps a memfd for DMA in a process that does nothing else and is gone afterwards.

The container pins the pages of the address that it is told, and keeps them when the process and its address are gone. So
neither keeper nor worker has DMA memory in its address space: a front that punches a page of it can send nobody a SIGBUS, and
RLIMIT_MEMLOCK counts for each mapping by itself.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
from ctypes import sizeof
from typing import NoReturn

from pcisplit.back.devices.vfio import abi

MAP_SECONDS = 60.0  #: pinning takes about a second for a few GiB of small pages

_REPORT = 4  # octets: the errno, 0 if all went well


def map_by_child(container: int, fd: int, size: int, iova: int) -> None:
    """Let the devices of a type1 container reach `size` octets of memfd `fd`, from its octet 0 on, at `iova`.

    OSError as of mmap(2) and VFIO_IOMMU_MAP_DMA; ETIMEDOUT, after which nobody knows what is mapped, if the child did not
    end in time. Source: vfio_dma_do_map of drivers/vfio/vfio_iommu_type1.c.
    """
    report, tell = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = os.fork()
            if child == 0:
                _map_and_exit(tell, container, fd, size, iova)
        finally:
            os.close(tell)
        poll = select.poll()
        poll.register(report, select.POLLIN)
        said = os.read(report, _REPORT) if poll.poll(1000 * MAP_SECONDS) else None
    finally:
        os.close(report)
    if said is None:
        os.kill(child, signal.SIGKILL)  # what sleeps in the kernel is reaped when it wakes up, by whoever ends last
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    os.waitpid(child, 0)
    code = int.from_bytes(said, "little") if len(said) == _REPORT else errno.ECHILD  # it was killed
    if code:
        raise OSError(code, os.strerror(code))


def _map_and_exit(tell: int, container: int, fd: int, size: int, iova: int) -> NoReturn:
    code = errno.EIO
    try:
        memory = mmap.mmap(fd, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        both = abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE
        request = abi.Type1DmaMap(sizeof(abi.Type1DmaMap), both, address, iova, size)
        fcntl.ioctl(container, abi.VFIO_IOMMU_MAP_DMA, request)
        code = 0
    except OSError as problem:
        code = problem.errno or errno.EIO
    except (ValueError, OverflowError):  # as mmap(2) and the ioctl would say it of such a number
        code = errno.EINVAL
    finally:
        os.write(tell, code.to_bytes(_REPORT, "little"))
        os._exit(0)
