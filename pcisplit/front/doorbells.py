# SPDX-License-Identifier: MIT
"""What the descriptors of a reply really are [THR-33]: whoever waits for a doorbell must not be kept by what the back made it.

The back holds the other end or the same open file of each, so nothing about their flags is certain. The frontend reads and
writes them only in ways that no flag can make wait; here it is made sure that they are of the kinds for which that is true.
"""

import os
import socket
import stat

from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.wire import Error


def check_eventfd(fd: int, what: str) -> None:
    """An eventfd is a file without a type, which only the kernel makes: a FIFO or a file of a slow file system is not."""
    if stat.S_IFMT(os.fstat(fd).st_mode):
        raise RemoteProtocolError(Error.OP_FAILED, f"{what} is not an eventfd")


def check_stream(fd: int, what: str) -> None:
    """A UNIX stream socket [RING-21]: a read with MSG_DONTWAIT never waits, and a device such as /dev/zero is none."""
    found = None
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            found = sock.family, sock.type
    if found != (socket.AF_UNIX, socket.SOCK_STREAM):
        raise RemoteProtocolError(Error.OP_FAILED, f"{what} is not a UNIX stream socket")
