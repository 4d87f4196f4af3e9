# SPDX-License-Identifier: MIT
"""Regions: memfds of 4 KiB pages that the back creates and both sides map [REG-1 to REG-3]."""

import fcntl
import mmap
import os

from pcisplit import wire
from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.wire import Error

#: F_SEAL_FUTURE_WRITE (linux/fcntl.h, since 5.1): existing mappings may write, no new ones. Not in fcntl before 3.13.
F_SEAL_FUTURE_WRITE = 0x10

SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
#: Of f2b at the meeting: more are to come [REG-3].
F2B_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
#: Of f2b when the front has mapped it, at Initialised: no hole can be punched, nothing written but by its mapping [REG-6].
LATE_F2B_SEALS = F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
B2F_SEALS = SIZE_SEALS | F_SEAL_FUTURE_WRITE


def create_region(name: str, size: int) -> int:
    """A new zeroed memfd of `size` octets, whole pages, not yet sealed, close-on-exec. Raises OSError."""
    if size % wire.PAGE_SIZE:
        raise ValueError(f"region {name} has {size} octets; it is made of whole pages of {wire.PAGE_SIZE}")
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def check_seals(fd: int, wanted: int, size: int, name: str) -> None:
    """Whether a region is what the specification says [REG-5]. Raises RemoteProtocolError (op_failed)."""
    found = os.fstat(fd).st_size
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise RemoteProtocolError(Error.OP_FAILED, f"region {name} is not a memfd") from None
    if found != size:
        raise RemoteProtocolError(
            Error.OP_FAILED, f"region {name} has {found} octets, its boot-info record says {size}"
        )
    if seals & wanted != wanted:
        text = f"region {name} has seals {seals:#x}, not {wanted:#x}: the back could change its size under us"
        raise RemoteProtocolError(Error.OP_FAILED, text)
    # The host may have no huge page left when one is first touched. Of DMA memory, which may have them, a mapping reserves them.
    if wanted != SIZE_SEALS and os.fstatvfs(fd).f_bsize > mmap.PAGESIZE:
        raise RemoteProtocolError(Error.OP_FAILED, f"region {name} is made of huge pages [REG-1]")
