# SPDX-License-Identifier: MIT
"""Doorbells: an eventfd to the back, a pipe to the front [RING-20, RING-21].

They differ because an eventfd has one open file for both ends: whoever holds it can clear O_NONBLOCK and hang the other in
a plain read or write. The back never reads the eventfd (edge-triggered epoll tells it enough), and the write end of the
pipe is an open file of its own.
"""

import os
from typing import NamedTuple, Self


class Doorbells(NamedTuple):
    """The back's descriptors: `kick` (eventfd, shared), `ring` (the pipe's write end, ours), `rung` (its read end)."""

    kick: int
    ring: int
    rung: int

    @classmethod
    def create(cls) -> Self:
        """New doorbells, close-on-exec and non-blocking. Raises OSError."""
        kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            rung, ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            os.close(kick)
            raise
        return cls(kick, ring, rung)
