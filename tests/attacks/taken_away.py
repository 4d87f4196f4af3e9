# SPDX-License-Identifier: MIT
"""A front that takes f2b away under the back, in a process of its own: ``python -m tests.attacks.taken_away MOMENT``.

A page that a front punches out of a sealed f2b comes back as zeros, unless the machine has no memory left for it: then reading
it is a SIGBUS. On a machine with memory the same SIGBUS comes from an f2b whose size was never sealed and is cut. The process
prints ``survived`` and what became of the session; without the guard it is killed.
"""

import json
import mmap
import os
import sys
import time

from pcisplit import pci
from pcisplit.proto.layout import BULK_SIZE
from pcisplit.proto.slots import Request, Response
from pcisplit.ring import region
from pcisplit.ring.words import Words
from pcisplit.wire import PAGE_SIZE, Op, State
from tests.offsets import offset_of, published

region.F2B_SEALS = 0  # before the back imports it: the stand-in

from tests.pair import Pair, Recorder  # noqa: E402

DEADLINE = 10.0


class RawFront:
    """The front's side as bare memory: it writes slots and words, and cuts f2b when asked to."""

    def __init__(self, pair: Pair) -> None:
        self.f2b_fd, self.b2f_fd, self.kick_fd = pair._fds[:3]
        self.size = os.fstat(self.f2b_fd).st_size
        self.memory = mmap.mmap(self.f2b_fd, self.size)
        self.b2f = mmap.mmap(self.b2f_fd, os.fstat(self.b2f_fd).st_size, prot=mmap.PROT_READ)
        self.words = Words(self.memory)
        self.published = 0

    def publish(self, *requests: Request) -> None:
        for request in requests:
            at = PAGE_SIZE + 64 * self.published
            self.memory[at : at + 64] = published(request.to_bytes(), self.published)
            self.published += 1
        self.words.store(offset_of("req_prod"), self.published)
        self.kick()

    def state(self, state: State) -> None:
        self.words.store(offset_of("state"), state)
        self.kick()

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def answer(self, number: int) -> Response:
        """The response in slot `number`, once it is there."""
        at = PAGE_SIZE + 64 * number
        deadline = time.monotonic() + DEADLINE
        while self.b2f[at : at + 64] == bytes(64):
            assert time.monotonic() < deadline, f"no response {number}"
            os.sched_yield()
        return Response.from_bytes_untrusted(self.b2f[at : at + 64])

    def cut(self, size: int) -> None:
        os.ftruncate(self.f2b_fd, size)


def main(moment: str) -> None:
    device = Recorder()
    pair = Pair(device, start=False)
    assert pair.back._serve is not None
    pair.back._serve.configure(60.0 if moment == "spinning" else 0.0, pair.back.order.features)
    front = RawFront(pair)
    pair.start()
    front.state(State.INITIALISED)
    front.publish(
        Request(Op.NOP, 1, 0, 1), Request(Op.CONF_WRITE, 2, 0, 1, width=2, offset=pci.COMMAND, value=pci.COMMAND_MEM)
    )
    found = [front.answer(0), front.answer(1)]
    if moment == "owner reads a block":
        device.hold.clear()
        front.publish(
            Request(Op.BAR_READ, 3, 0, 1, width=4),
            Request(Op.BAR_WRITE_BLOCK, 4, 0, 1, width=4, length=4096, bulk=BULK_SIZE - 4096),
            Request(Op.NOP, 5, 0, 1),
        )
        front.cut(front.size - BULK_SIZE)  # the rings stay
        device.hold.set()
        found += [front.answer(number) for number in range(2, 5)]
        front.cut(0)
    else:
        front.cut(0)
    if moment == "stopped":
        pair.back.stop()
    front.kick()
    for thread in pair._threads:
        thread.join(DEADLINE)
    teardown = pair.stop()
    report = {"reason": pair.back.reason.name, "errors": [answer.error for answer in found]}
    print("survived", json.dumps({**report, "problems": [step.problem for step in teardown.problems]}))


if __name__ == "__main__":
    main(sys.argv[1])
