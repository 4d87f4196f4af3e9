# SPDX-License-Identifier: MIT
"""The raw peer: one connection to a backend, spoken in octets and rings, able to keep every rule and to break any.

It goes through a session in three steps, each of which a case may take by itself or leave out: connect,
:meth:`Peer.meet` with a hello, :meth:`Peer.connect`. It waits as the specification says (RING-10, RING-11), so that
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

from pcisplit import messages, wire
from pcisplit.bootinfo import BootInfo, Ring, parse_boot_info_untrusted
from pcisplit.conformance.case import DEADLINE, Violation, expect, fail
from pcisplit.conformance.octets import U32, Answer, Hint, offsets, request
from pcisplit.errors import RemoteProtocolError, error_name
from pcisplit.ring.words import Words
from pcisplit.wire import Direction, Error, Op, RegionIndex, RingIndex, State

FRONT = offsets(wire.FRONT_HEADER)
BACK = offsets(wire.BACK_HEADER)
DEVICE = offsets(wire.DEVICE_STATE)

_SPINS = 200


class Refused(Exception):
    """The back answered the hello with a refusal."""

    def __init__(self, error: Error, text: str) -> None:
        super().__init__(f"{error_name(error)}: {text}")
        self.error = error
        self.text = text


class Gone(Violation):
    """The back ended a session that should have lived on."""

    def __init__(self, doing: str, reason: int) -> None:
        super().__init__(doing, f"the end of the session, reason {error_name(reason)}")


class Peer:
    """One connection and, after the meeting, one session."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fds: list[int] = []
        self.maps: dict[RegionIndex, mmap.mmap] = {}
        self._words: dict[RegionIndex, Words] = {}
        self.info: BootInfo
        self.reply = b""
        self.req_prod = self.rsp_cons = self.evt_cons = 0
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

    def hear(self, timeout: float = DEADLINE) -> messages.Reply:
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
        try:
            reply = messages.parse_reply_untrusted(self.reply)
        except RemoteProtocolError as problem:
            fail("a reply as the tables describe it", str(problem))
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
        try:
            self.info = parse_boot_info_untrusted(boot_info)
        except RemoteProtocolError as problem:
            fail("a sound boot-info block", str(problem))
        for region in self.info.regions:
            access = mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0)
            fd = self.fds[region.fd]
            size = os.fstat(fd).st_size
            expect(size == region.size, f"region {region.index.name} of {region.size} octets", f"{size} octets")
            self.maps[region.index] = mmap.mmap(fd, region.size, mmap.MAP_SHARED, access)
        for index in (RegionIndex.F2B, RegionIndex.B2F):
            self._words[index] = Words(self.maps[index])
        self.generations = [device.generation for device in self.info.devices]

    def fd(self, doorbell: Direction) -> int:
        """The descriptor of a doorbell."""
        return next(self.fds[bell.fd] for bell in self.info.doorbells if bell.index is doorbell)

    def ring(self, index: RingIndex) -> Ring:
        """The place of a ring."""
        return next(ring for ring in self.info.rings if ring.index is index)

    # --- words --------------------------------------------------------------------------------------------------------

    def store(self, name: str, value: int) -> None:
        """Store a 32-bit field of the front header, sequentially consistent."""
        self._words[RegionIndex.F2B].store(FRONT[name][0], value & U32)

    def _load(self, place: tuple[int, int], base: int = 0) -> int:
        offset, size = base + place[0], place[1]
        words = self._words[RegionIndex.B2F]
        low = words.load(offset)
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
        value = self._load(DEVICE[name], self.info.devices[index].state_offset)
        return value - (1 << 32) if name == "last_posted_error" and value >> 31 else value

    def counter(self, vector: int = 0, index: int = 0) -> int:
        """Interrupts relayed for a vector of a device."""
        return self._load((self.info.devices[index].vectors[vector].counter_offset, 8))

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

    def wait(self, ready: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
        """Spin shortly, then sleep until the back kicks [RING-10]; Violation at the deadline, Gone if the back goes."""
        if any(ready() for _ in range(_SPINS)):
            return
        if self.lying:
            until(ready, what, timeout)
            return
        deadline = time.monotonic() + timeout
        while not ready():
            self.store("sleeping", 1)
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

    # --- rings --------------------------------------------------------------------------------------------------------

    def publish(self, *slots: bytes) -> None:
        """Put 64-octet slots on the request ring, full or not, then the index, then a kick if the back sleeps."""
        self.fill(*slots)
        self.req_prod = (self.req_prod + len(slots)) & U32
        self.store("req_prod", self.req_prod)
        self.announce()

    def fill(self, *slots: bytes) -> None:
        """Write slots where the next requests go, without publishing them."""
        ring, f2b = self.ring(RingIndex.REQUEST), self.maps[RegionIndex.F2B]
        for number, slot in enumerate(slots, self.req_prod):
            at = ring.offset + wire.SLOT_SIZE * (number % ring.slots)
            f2b[at : at + wire.SLOT_SIZE] = slot

    def take(self, count: int = 1, timeout: float = DEADLINE) -> list[Answer]:
        """The next `count` responses, in ring order."""
        ring, answers = self.ring(RingIndex.RESPONSE), list[Answer]()
        while len(answers) < count:
            what = f"response {len(answers) + 1} of {count}"
            self.wait(lambda: self.back("rsp_prod") != self.rsp_cons, what, timeout)
            room = min(self._published("rsp_prod", self.rsp_cons, ring.slots), count - len(answers))
            answers += [Answer.parse(self._slot(ring, self.rsp_cons + n)) for n in range(room)]
            self.rsp_cons = (self.rsp_cons + room) & U32
            self.store("rsp_cons", self.rsp_cons)
            self.announce()
        return answers

    def hints(self) -> list[Hint]:
        """Every event that is there now."""
        ring = self.ring(RingIndex.EVENT)
        room = self._published("evt_prod", self.evt_cons, ring.slots)
        hints = [Hint.parse(self._slot(ring, self.evt_cons + n)) for n in range(room)]
        self.evt_cons = (self.evt_cons + room) & U32
        self.store("evt_cons", self.evt_cons)
        self.announce()
        return hints

    def _published(self, index: str, cons: int, slots: int) -> int:
        ahead = (self.back(index) - cons) & U32
        expect(ahead <= slots, f"{index} at most {slots} ahead of what was taken", f"{ahead} ahead")
        return ahead

    def _slot(self, ring: Ring, number: int) -> bytes:
        at = ring.offset + wire.SLOT_SIZE * (number % ring.slots)
        return self.maps[ring.region][at : at + wire.SLOT_SIZE]

    # --- requests -----------------------------------------------------------------------------------------------------

    def slot(self, op: int, **fields: int) -> bytes:
        """A request with the next id and the device's generation, unless `fields` says otherwise."""
        self.next_id = (self.next_id + 1) & U32
        device = fields.get("device", 0)
        known = self.generations[device] if device < len(self.generations) else 0
        return request(op, **({"id": self.next_id, "generation": known} | fields))  # type: ignore[arg-type]

    def ask_all(self, slots: list[bytes], timeout: float = DEADLINE) -> list[Answer]:
        """One answer for each slot, in order, with its op, id and device [RING-7]; as many in flight as fit."""
        answers: list[Answer] = []
        step = self.ring(RingIndex.REQUEST).slots
        for start in range(0, len(slots), step):
            batch = slots[start : start + step]
            self.publish(*batch)
            for asked, answer in zip(batch, self.take(len(batch), timeout), strict=True):
                echo = (
                    answer.op.to_bytes(2, "little"),
                    answer.id.to_bytes(4, "little"),
                    answer.device.to_bytes(2, "little"),
                )
                same = echo == (asked[0:2], asked[4:8], asked[8:10])
                expect(same, f"op, id and device of {asked[:10].hex(' ')} in its response", str(answer))
                answers.append(answer)
        return answers

    def ask(self, op: int, **fields: int) -> Answer:
        """Publish one request and take its answer, whatever it says."""
        return self.ask_all([self.slot(op, **fields)])[0]

    def do(self, op: int, **fields: int) -> Answer:
        """Like :meth:`ask`, but the answer must be success."""
        answer = self.ask(op, **fields)
        wanted = ", ".join(f"{name} {value:#x}" for name, value in fields.items())
        expect(not answer.error, f"success of op {op:#x} ({wanted})", str(answer))
        return answer

    def conf_read(self, offset: int, width: int, device: int = 0) -> int:
        """A value of configuration space."""
        return self.do(Op.CONF_READ, offset=offset, width=width, device=device).value

    def conf_write(self, offset: int, width: int, value: int, device: int = 0) -> None:
        """Write configuration space."""
        self.do(Op.CONF_WRITE, offset=offset, width=width, value=value, device=device)

    def bar_read(self, bar: int, offset: int, width: int, device: int = 0) -> int:
        """A value of a BAR."""
        return self.do(Op.BAR_READ, region=bar, offset=offset, width=width, device=device).value

    def bar_write(self, bar: int, offset: int, width: int, value: int, device: int = 0) -> None:
        """Write a BAR, and wait for the answer."""
        self.do(Op.BAR_WRITE, region=bar, offset=offset, width=width, value=value, device=device)

    def nop(self, device: int = 0) -> None:
        """The session lives and answers."""
        self.do(Op.NOP, device=device)


def still(seconds: float, watch: Callable[[], object], what: str) -> None:
    """What `watch` returns does not change for `seconds`; Violation if it does."""
    before, deadline = watch(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = watch()
        expect(now == before, f"{what} stays {before}", str(now))
        select.select([], [], [], 0.01)


def until(ready: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
    """Look at `ready` until it holds, for what comes without a kick; Violation at the deadline."""
    deadline = time.monotonic() + timeout
    while not ready():
        expect(time.monotonic() < deadline, f"{what} within {timeout:g} s", "nothing")
        select.select([], [], [], 0.001)
