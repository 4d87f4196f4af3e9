# SPDX-License-Identifier: MIT
"""Everything with a descriptor that a session is made of, and the one place that makes it.

The supervisor makes them, maps none, and sends them: to the worker, and in the reply to the front. A worker that has been
taken over can therefore give its front nothing that the front was not to have.
"""

import fcntl
import os
from typing import NamedTuple

from pcisplit import wire
from pcisplit.back.channel import close_all
from pcisplit.proto.layout import Layout
from pcisplit.ring.doorbell import Doorbells
from pcisplit.ring.region import B2F_SEALS, F2B_SEALS, create_region


class Resources(NamedTuple):
    """Descriptors. `vectors` has one eventfd per vector and device, `dma` is -1 if the session has no DMA memory."""

    f2b: int
    b2f: int
    kick: int
    ring: int
    rung: int
    dma: int
    vectors: tuple[tuple[int, ...], ...]

    def all(self) -> list[int]:
        """Every descriptor, in the order in which a worker gets them; without the front's end of its doorbell."""
        common = [self.f2b, self.b2f, self.kick, self.ring]
        return common + ([self.dma] if self.dma >= 0 else []) + [fd for each in self.vectors for fd in each]

    def close(self) -> None:
        close_all([*self.all(), self.rung])


def create(vectors: list[int], layout: Layout, dma: int) -> Resources:
    """Regions, doorbells and as many vectors per device as `vectors` says. Owns `dma`. Raises OSError and leaves nothing."""
    made: list[int] = [dma] if dma >= 0 else []
    try:
        f2b = create_region("pcisplit-f2b", layout.f2b_size)
        made.append(f2b)
        os.pwrite(f2b, wire.FRONT_HEADER.build({"magic": wire.F2B_MAGIC, "epoch": 1}), 0)
        fcntl.fcntl(f2b, fcntl.F_ADD_SEALS, F2B_SEALS)
        b2f = create_region("pcisplit-b2f", layout.b2f_size)
        made.append(b2f)
        bells = Doorbells.create()
        made += bells
        eventfds: list[tuple[int, ...]] = []
        for count in vectors:
            one: list[int] = []
            for _ in range(count):
                one.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                made.append(one[-1])
            eventfds.append(tuple(one))
    except OSError:
        close_all(made)
        raise
    return Resources(f2b, b2f, bells.kick, bells.ring, bells.rung, dma, tuple(eventfds))


def seal_b2f(fd: int) -> None:
    """When the worker has mapped it for writing: nobody else ever can [REG-2]. Nobody but the worker has it yet."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, B2F_SEALS)
