# SPDX-License-Identifier: MIT
"""One connection to a backend: the meeting, the words of both headers, states and doorbells, and waits that end.

A session has three steps, each of which a case may take by itself or leave out: connect, :meth:`Connection.meet` with a
hello, :meth:`Connection.connect`. It waits as the specification says (RING-10, RING-11), so that
every case proves by the way that no kick is lost; every wait has a deadline. Leaving its ``with`` block closes every
descriptor and mapping; to the back that is the death of its peer.
"""

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from pcisplit import wire
from pcisplit.conformance.boot import Block, Ring
from pcisplit.conformance.case import DEADLINE, Violation, expect, fail
from pcisplit.conformance.meeting import Said
from pcisplit.conformance.octets import BACK, DEVICE, FRONT, SIGNED, U32
from pcisplit.conformance.watch import until
from pcisplit.proto.errors import error_name
from pcisplit.ring.words import Words
from pcisplit.wire import Direction, Error, RegionIndex, RingIndex, State

_SPINS = 200


class Refused(Exception):
    """The back answered the hello with a refusal."""

    def __init__(self, error: int, text: str) -> None:
        super().__init__(f"{error_name(error)}: {text}")
        self.error = error
        self.text = text


class Gone(Violation):
    """The back ended a session that should have lived on."""

    def __init__(self, doing: str, reason: int) -> None:
        super().__init__(doing, f"the end of the session, reason {error_name(reason)}")


class Connection:
    """One connection and, after the meeting, one session."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fds: list[int] = []
        self.maps: dict[int, mmap.mmap] = {}
        self._words: dict[int, Words] = {}
        self.info: Block
        self.reply = b""
        self.req_prod = self.rsp_cons = self.evt_cons = 0  # requests filled, responses and events taken
        self.kicks = 0
        self.lying = False
        self.next_id = 1
        self.generations: list[int] = []
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(DEADLINE), 0))
            self.sock.connect(path)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, every descriptor and every mapping."""
        self.sock.close()
        for words in self._words.values():
            words.release()  # it holds the mapping open
        self._words.clear()
        for mapping in self.maps.values():
            mapping.close()
        self.maps.clear()
        for fd in self.fds:
            with contextlib.suppress(OSError):  # a case may have closed one
                os.close(fd)
        self.fds.clear()

    # --- meeting ------------------------------------------------------------------------------------------------------

    def say(self, octets: bytes, fds: Iterable[int] = ()) -> None:
        """Send one message on the socket."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([octets], rights)

    def hear(self, timeout: float = DEADLINE) -> Said:
        """The back's reply, and its descriptors in ``fds``; Violation if none comes or it does not parse."""
        expect(bool(select.select([self.sock], [], [], timeout)[0]), f"a reply within {timeout:g} s", "nothing")
        room = socket.CMSG_SPACE(4 * (wire.MAX_FDS + 1))
        try:
            self.reply, rights, flags, _ = self.sock.recvmsg(1 << 20, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # it closed with our hello unread, and what it said before is lost
            fail("a reply", "a reset of the connection")
        for _, _, data in rights:
            self.fds += array.array("i", data[: len(data) // 4 * 4])
        expect(not flags & socket.MSG_CTRUNC, f"at most {wire.MAX_FDS} descriptors", "more than fit")
        expect(bool(self.reply), "a reply", "the end of the connection")
        reply = Said.parse(self.reply)
        expect(reply.fds == len(self.fds), f"the {reply.fds} descriptors that the reply announces", f"{len(self.fds)}")
        return reply

    def meet(self, octets: bytes) -> Self:
        """Send a hello and map what comes. Raises :class:`Refused` if there is no session."""
        self.say(octets)
        reply = self.hear()
        if reply.error:
            raise Refused(reply.error, reply.text)
        self.map(reply.boot_info)
        return self

    def map(self, boot_info: bytes) -> None:
        """Map the regions of a boot-info block, each as the block says the front may."""
        self.info = Block.parse(boot_info)
        for region in self.info.regions:
            access = mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0)
            expect(region.fd < len(self.fds), "a place among the descriptors [BOOT-7]", str(region.fd))
            fd = self.fds[region.fd]
            size = os.fstat(fd).st_size
            expect(size == region.size, f"region {region.index} of {region.size} octets", f"{size} octets")
            self.maps[region.index] = mmap.mmap(fd, region.size, mmap.MAP_SHARED, access)
        for index in (RegionIndex.F2B, RegionIndex.B2F):
            self._words[index] = Words(self.maps[index])
        self.generations = [device.generation for device in self.info.devices]

    def fd(self, doorbell: Direction) -> int:
        """The descriptor of a doorbell."""
        return next(self.fds[bell.fd] for bell in self.info.doorbells if bell.index == doorbell)

    def ring(self, index: RingIndex) -> Ring:
        """The place of a ring."""
        return next(ring for ring in self.info.rings if ring.index == index)

    # --- words --------------------------------------------------------------------------------------------------------

    def store(self, name: str, value: int) -> None:
        """Store a 32-bit field of the front header, sequentially consistent."""
        self._words[RegionIndex.F2B].store(FRONT[name][0], value & U32)

    def _load(self, place: tuple[int, int], base: int = 0) -> int:
        offset, size = base + place[0], place[1]
        words = self._words[RegionIndex.B2F]
        low = words.load(offset & ~3)
        if size < 4:
            return low >> 8 * (offset & 3) & (1 << 8 * size) - 1
        if size == 4:
            return low
        high = words.load(offset + 4)
        while (again := words.load(offset)) < low:  # a carry went into the high half between the loads
            low, high = again, words.load(offset + 4)
        return high << 32 | low

    def back(self, name: str) -> int:
        """A field of the back header."""
        return self._load(BACK[name])

    @property
    def reason(self) -> int:
        """The error code that ended the session, 0 while it lives."""
        reason = self.back("reason")
        return reason - (1 << 32) if reason >> 31 else reason

    def device(self, name: str, index: int = 0) -> int:
        """A field of a device state; error codes are signed."""
        value, bits = self._load(DEVICE[name], self.info.devices[index].state_offset), 8 * DEVICE[name][1]
        return value - (1 << bits) if name in SIGNED and value >> bits - 1 else value

    def counter(self, vector: int = 0, index: int = 0) -> int:
        """Interrupts relayed for a vector of a device's first run."""
        return self._load((self.info.devices[index].runs[0].counters + 8 * vector, 8))

    def total(self, group: int = 0, index: int = 0) -> int:
        """The total of the counters of 64 vectors of a device's first run."""
        return self._load((self.info.devices[index].runs[0].totals + 8 * group, 8))

    def pending(self, index: int = 0) -> int:
        """The pending bits of the first 32 vectors of a device."""
        return self._load((self.info.devices[index].runs[0].pending, 4))

    # --- states and doorbells -----------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Ring the back's doorbell, asked or not."""
        os.write(self.fd(Direction.FRONT_TO_BACK), (1).to_bytes(8, "little"))
        self.kicks += 1

    def announce(self) -> None:
        """Kick if the back sleeps; after every store of an index it may wait for [RING-11]."""
        if self.back("sleeping"):
            self.kick()

    def step(self, state: int) -> None:
        """Write the front's state word and kick, as RING-12 says; any number, legal or not."""
        self.store("state", state)
        self.kick()

    def connect(self) -> Self:
        """The handshake of ``spec/lifecycle.md``, front side."""
        self.step(State.INITIALISING)
        self.step(State.INITIALISED)
        self.wait(lambda: self.back("state") == State.CONNECTED, "the back goes to Connected")
        self.step(State.CONNECTED)
        return self

    def part(self) -> None:
        """The closing handshake."""
        self.step(State.CLOSING)
        self.wait(lambda: self.back("state") == State.CLOSED, "the back goes to Closed")
        self.step(State.CLOSED)

    def lie(self, sleeping: int) -> None:
        """From now on say `sleeping` whatever is true, and find what comes by polling."""
        self.lying = True
        self.store("sleeping", sleeping)

    def wait(
        self, ready: Callable[[], bool], what: str, timeout: float = DEADLINE, look: Callable[[], object] | None = None
    ) -> None:
        """Spin shortly, then sleep until the back kicks [RING-10]; Violation at the deadline, Gone if the back goes.

        `look` is done when `sleeping` was set, beside `ready`: at the `prod` of a ring, and what it says is judged.
        """
        if any(ready() for _ in range(_SPINS)):
            return
        if self.lying:
            until(ready, what, timeout)
            return
        deadline = time.monotonic() + timeout
        while not ready():
            self.store("sleeping", 1)
            if look:
                look()
            if not ready():
                self._sleep(deadline - time.monotonic(), ready, what)
            self.store("sleeping", 0)

    def _sleep(self, left: float, ready: Callable[[], bool], what: str) -> None:
        bell = self.fd(Direction.BACK_TO_FRONT)
        sock = self.sock.fileno()
        rung, _, _ = select.select([bell, sock], [], [], max(left, 0))
        if not rung:
            fail(f"a kick for {what}", "the change without a kick" if ready() else "nothing before the deadline")
        rang = bell not in rung or bool(os.read(bell, 65536))
        if (sock in rung or not rang) and not ready():
            raise Gone(what, self.reason)

    def hung_up(self, timeout: float) -> bool:
        """Whether the back closes the connection within `timeout` seconds; anything it says instead is a Violation."""
        if not select.select([self.sock], [], [], timeout)[0]:
            return False
        try:
            octets = self.sock.recv(64)
        except ConnectionResetError:  # it closed with something of ours unread
            return True
        expect(not octets, "nothing but the end on the socket", octets.hex(" "))
        return True

    def quiet(self, seconds: float) -> None:
        """Let time pass; Violation if the session ends meanwhile."""
        if self.hung_up(seconds):
            raise Gone(f"a session that lives for another {seconds:g} s", self.reason if self.maps else 0)

    def ended(self, *reasons: Error, by: str) -> None:
        """The back ends the session by itself: Closed, one of `reasons` left behind, the socket closed [LIFE-5]."""
        until(lambda: self.back("state") in (State.CLOSING, State.CLOSED), f"the end of the session by {by}")
        names = " or ".join(error_name(reason) for reason in reasons)
        expect(self.reason in reasons, f"reason {names} for {by}", error_name(self.reason))
        expect(self.hung_up(DEADLINE), f"the socket closed after {by}", "an open one")
        expect(self.back("state") == State.CLOSED, f"the back is Closed after {by}", f"state {self.back('state')}")
