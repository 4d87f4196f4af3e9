# SPDX-License-Identifier: MIT
"""Doorbells: an eventfd to the back, a stream socket to the front [RING-20, RING-21].

They differ because an eventfd has one open file for both ends: whoever holds it can clear O_NONBLOCK and hang the other in
a plain read or write. The back never reads the eventfd (edge-triggered epoll tells it enough). Its end of the socket pair is
an open file of its own, and no lock that the front can hold stands before a send on it - as one does before a write to a
pipe, whose reader may hold the pipe's mutex for ever (a splice into a full socket, a read into a page that never comes).
"""

import os
import socket
from typing import NamedTuple, Self


class Doorbells(NamedTuple):
    """The back's descriptors: `kick` (eventfd, shared), `ring` (our end of the socket pair), `rung` (the front's end)."""

    kick: int
    ring: int
    rung: int

    @classmethod
    def create(cls) -> Self:
        """New doorbells, close-on-exec and non-blocking. Raises OSError."""
        kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            os.close(kick)
            raise
        ours.shutdown(socket.SHUT_RD)  # the front has nothing to say here
        return cls(kick, ours.detach(), theirs.detach())
