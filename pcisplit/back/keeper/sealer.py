# SPDX-License-Identifier: MIT
"""A process that adds seals to one region and ends.

F_ADD_SEALS takes the inode's lock. A front may hold that lock for as long as it likes, with a write of its own from memory
whose fault is never answered; so nobody whose time matters may ask for it once a front has the descriptor.
"""

import fcntl

from pcisplit.back.channel import Channel, answer, failure
from pcisplit.ring.region import LATE_F2B_SEALS
from pcisplit.wire import Error


def run(channel: Channel) -> None:
    """One request: ``seal`` with f2b beside it."""
    message, (fd,) = channel.recv()
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, LATE_F2B_SEALS)
    except OSError as problem:
        channel.send(failure(message["id"], Error.OP_FAILED, f"sealing f2b: {problem.strerror}"))
        return
    channel.send(answer(message["id"]))
