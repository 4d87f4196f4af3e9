# SPDX-License-Identifier: MIT
"""The back's side of a session, played by a test that may write anything, at any time, and make the descriptors what it likes."""

import fcntl
import mmap
import os
import socket
from types import TracebackType
from typing import Self

from pcisplit import wire
from pcisplit.front import Session
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.layout import RESPONSE_SLOTS, Layout
from pcisplit.proto.slots import Response
from pcisplit.ring.doorbell import Doorbells
from pcisplit.ring.region import B2F_SEALS, F2B_SEALS, SIZE_SEALS, create_region
from pcisplit.ring.words import Words
from pcisplit.wire import State
from tests.offsets import offset_of, published
from tests.pair import Pair, Recorder

STATE, RSP_PROD = 4, 0x80  #: in the back's header
F2B, B2F, KICK, RUNG, DMA = range(5)  #: places among the descriptors


class Liar:
    """``fds`` goes to the front and may be changed before ``connect``; ``b2f`` can be written at will; ``ring`` rings."""

    def __init__(self, seals: bool = True) -> None:
        with Pair(Recorder(), start=False) as pair:
            boot = pair.boot_info
        self.boot_info = boot
        kick, self.ring, rung = Doorbells.create()
        layout = Layout.of([1])
        self.fds = [
            create_region("f2b", layout.f2b_size),
            create_region("b2f", layout.b2f_size),
            kick,
            rung,
            create_region("dma", 1 << 20),
        ]
        os.pwrite(self.fds[F2B], wire.F2B_MAGIC.to_bytes(4, "little"), 0)
        fcntl.fcntl(self.fds[F2B], fcntl.F_ADD_SEALS, F2B_SEALS)
        self.f2b = mmap.mmap(self.fds[F2B], layout.f2b_size, prot=mmap.PROT_READ)
        self.b2f = mmap.mmap(self.fds[B2F], layout.b2f_size)
        if seals:
            fcntl.fcntl(self.fds[B2F], fcntl.F_ADD_SEALS, B2F_SEALS)
            fcntl.fcntl(self.fds[DMA], fcntl.F_ADD_SEALS, SIZE_SEALS)
        header = {"magic": wire.B2F_MAGIC, "state": State.CONNECTED, "epoch": 1}
        self.b2f[: wire.BACK_HEADER.size] = wire.BACK_HEADER.build(header)
        self.words = Words(self.b2f)
        self.sock, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def connect(self, timeout: float = 0.05) -> Session:
        fds, sock = [os.dup(fd) for fd in self.fds], self.sock.dup()
        try:
            return Session(sock, parse_boot_info_untrusted(self.boot_info), self.boot_info, fds, timeout)
        except Exception:
            for fd in fds:
                os.close(fd)
            sock.close()
            raise

    def swap(self, place: int, fd: int) -> None:
        """Give the front `fd` in this place; it is ours to close."""
        os.close(self.fds[place])
        self.fds[place] = fd

    def answer(self, number: int, *responses: Response | bytes) -> None:
        """Write responses `number` and up, and announce them together."""
        for at, response in enumerate(responses, number):
            place = 4096 + wire.SLOT_SIZE * (at % RESPONSE_SLOTS)
            octets = response if isinstance(response, bytes) else response.to_bytes()
            self.b2f[place : place + wire.SLOT_SIZE] = published(octets, at)
        self.words.store(RSP_PROD, number + len(responses))

    def requests_announced(self) -> int:
        """The front's req_prod."""
        at = offset_of("req_prod")
        return int.from_bytes(self.f2b[at : at + 4], "little")

    def close(self) -> None:
        self.words.release()
        for fd in [*self.fds, self.ring]:
            os.close(fd)
        self.sock.close()
        self.other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
