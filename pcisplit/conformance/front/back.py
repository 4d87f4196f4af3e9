# SPDX-License-Identifier: MIT
"""A scripted back, honest unless told otherwise: one device of its own invention, rings of 16 slots, nothing behind them.

It does nothing by itself: a case takes each request from it and says what is answered, when, how often and with which octets.
"""

import array
import dataclasses
import fcntl
import mmap
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pcisplit import wire
from pcisplit.conformance.boot import Bar, Block, Bulk, Device, Doorbell, Region, Ring, Run
from pcisplit.conformance.case import DEADLINE, expect
from pcisplit.conformance.meeting import Said, Wish
from pcisplit.conformance.octets import BACK, FRONT, SEQUENCE, SLOT, U32, USED, Answer, Asked, Hint
from pcisplit.conformance.watch import until
from pcisplit.ring.words import Words
from pcisplit.wire import Direction, DoorbellType, Feature, Op, RequestFlag, RingIndex, State, VectorType

F_SEAL_FUTURE_WRITE = 0x10  # fcntl has no name for it before Python 3.13
FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
B2F_SEALS = FIXED | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
SLOTS, PAGE, NAME = 16, 4096, "dev0"
SIZE = 3 * PAGE  # of each region: header; rings, device state and vectors; a bulk area
STATE, COUNTERS, TOTALS, PENDING, MASKS = (PAGE + 2 * SLOTS * SLOT + 64 * n for n in range(5))
GENERATION, BAR_SIZE = 7, 0x10000


def block() -> Block:
    """The boot-info of the one device, sound."""
    run = Run(0, VectorType.MSI, 0, wire.NO_FD, 0, 1, COUNTERS, TOTALS, PENDING, MASKS)
    bars = (Bar(0, 0, BAR_SIZE, 0x80000000),)
    return Block(
        features=int(wire.BUILT),
        session=1,
        epoch=1,
        minor=wire.MINOR,
        regions=(Region(0, 0, 1, SIZE), Region(1, 1, 0, SIZE)),
        rings=(Ring(0, 0, SLOTS, PAGE), Ring(1, 1, SLOTS, PAGE), Ring(2, 1, SLOTS, PAGE + SLOTS * SLOT)),
        bulks=(Bulk(0, 0, 2 * PAGE, PAGE), Bulk(1, 1, 2 * PAGE, PAGE)),
        doorbells=(
            Doorbell(Direction.FRONT_TO_BACK, 2, DoorbellType.EVENTFD),
            Doorbell(Direction.BACK_TO_FRONT, 3, DoorbellType.SOCKET),
        ),
        windows=(),
        devices=(Device(0, STATE, GENERATION, 0x1AF4, 0x10FF, 0xFF0000, 1, 256, NAME, bars, (run,)),),
    )


@dataclasses.dataclass
class Script:
    """How the back deviates from an honest one, before its session begins."""

    features: int = int(wire.BUILT)
    block: Block = dataclasses.field(default_factory=block)
    octets: Callable[[bytes], bytes] = lambda octets: octets  #: of the boot-info block, changed
    reply: Callable[[bytes], bytes] = lambda octets: octets  #: of the whole reply, changed
    b2f_seals: int = B2F_SEALS
    f2b_seals: int = FIXED
    f2b_size: int = SIZE
    magics: tuple[int, int] = (wire.F2B_MAGIC, wire.B2F_MAGIC)
    fds: dict[int, Callable[[], int]] = dataclasses.field(default_factory=dict)  #: others instead of ours, by place


class Back:
    """One listening socket and, after :meth:`meet`, one session."""

    def __init__(self, folder: str) -> None:
        self.path = str(Path(folder) / "socket")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen()
        self.sock: socket.socket | None = None
        self.wish: Wish
        self.taken = self.filled = self.hinted = 0  # requests taken, responses and events filled
        self._maps: list[mmap.mmap] = []
        self._words: list[Words] = []
        self._held: list[int] = []
        self.bell: socket.socket | None = None
        self.eventfd = -1
        self.generation = GENERATION

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for words in self._words:
            words.release()
        for memory in self._maps:
            memory.close()
        for fd in self._held:
            os.close(fd)
        for one in (self.listener, self.sock, self.bell):
            if one is not None:
                one.close()

    # --- meeting -------------------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """Accept the front and read its hello [MEET-2]."""
        expect(bool(select.select([self.listener], [], [], DEADLINE)[0]), "a front that connects", "nobody")
        self.sock, _ = self.listener.accept()
        expect(bool(select.select([self.sock], [], [], 1)[0]), "a hello within 1 second [MEET-2]", "nothing")
        self.wish = Wish.parse(self.sock.recv(1 << 16))

    def meet(self, script: Script | None = None) -> None:
        """Hear the hello and give the front its session."""
        script = script or Script()
        self.hear()
        assert self.sock is not None
        f2b = self._memory("f2b", script.f2b_size, script.magics[0], script.f2b_seals)
        b2f = self._memory("b2f", SIZE, script.magics[1], script.b2f_seals)
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.bell, theirs = socket.socketpair()
        self.bell.setblocking(False)
        theirs.setblocking(False)
        theirs.shutdown(socket.SHUT_WR)
        self._held += [self.eventfd, theirs.detach()]
        fds = [f2b, b2f, *self._held[-2:]]
        for place, make in script.fds.items():
            fds[place] = make()
            self._held.append(fds[place])
        features = script.features & self.wish.features
        bulks = script.block.bulks if features & Feature.BLOCK else ()
        octets = script.octets(dataclasses.replace(script.block, features=features, bulks=bulks).build())
        said = script.reply(Said(0, "", octets, len(fds), wire.MINOR).build())
        self.sock.sendmsg([said], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def refuse(self, error: int, text: str) -> None:
        """Hear the hello and refuse it."""
        self.hear()
        assert self.sock is not None
        self.sock.send(Said(error, text, b"", 0, wire.MINOR).build())
        self.sock.close()

    def connect(self, script: Script | None = None) -> None:
        """Meet, and take the front through its states to Connected [LIFE-1, RING-12]."""
        self.meet(script)
        self.becomes(State.INITIALISED)
        self.step(State.CONNECTED)
        self.becomes(State.CONNECTED)

    def _memory(self, name: str, size: int, magic: int, seals: int) -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._held.append(fd)
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)
        memory[0:4] = magic.to_bytes(4, "little")
        self._maps.append(memory)
        self._words.append(Words(memory))
        if name == "f2b":
            self._words[0].store(FRONT["epoch"][0], 1)
        else:
            words = self._words[1]
            for field, value in (("epoch", 1), ("devices", 1), ("session", 1), ("state", State.INIT_WAIT)):
                words.store(BACK[field][0], value)
            words.store(STATE, 1)
            words.store(STATE + 4, GENERATION)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    # --- words -----------------------------------------------------------------------------------------------------------

    def front(self, name: str) -> int:
        """A 32-bit field of the front header."""
        return self._words[0].load(FRONT[name][0])

    def store(self, name: str, value: int) -> None:
        """A 32-bit field of the back header."""
        self._words[1].store(BACK[name][0], value & U32)

    def store_at(self, offset: int, value: int) -> None:
        """Any word of b2f."""
        self._words[1].store(offset, value & U32)

    def step(self, state: int, reason: int = 0) -> None:
        """Write the back's state word, the reason before it, and kick [RING-18, LIFE-5]."""
        if reason:
            self.store("reason", reason)
        self.store("state", state)
        self.kick()

    def kick(self) -> None:
        """Ring the front's doorbell; one that is full counts as rung [RING-23]."""
        assert self.bell is not None
        try:
            self.bell.send(b"!", socket.MSG_NOSIGNAL)
        except (BlockingIOError, BrokenPipeError):
            return

    def kicks(self) -> int:
        """Kicks since this was last asked."""
        try:
            return os.eventfd_read(self.eventfd)
        except BlockingIOError:
            return 0

    def kicked(self, why: str) -> None:
        """A kick comes."""
        until(lambda: self.kicks() > 0, f"a kick of the front {why}")

    def becomes(self, state: State) -> None:
        """The front comes to `state`, and has kicked [RING-12]."""
        until(lambda: self.front("state") == state, f"a front that is {state.name}")
        self.kicked(f"that has become {state.name} [RING-12]")

    def hung_up(self, what: str) -> None:
        """The front closes the socket, and has said nothing on it [MEET-13]."""
        assert self.sock is not None
        expect(bool(select.select([self.sock], [], [], DEADLINE)[0]), f"the socket closed by the front {what}", "open")
        try:
            said = self.sock.recv(64)
        except ConnectionResetError:
            return
        expect(not said, "nothing but the end on the socket [MEET-13]", said.hex(" "))

    def hang_up(self) -> None:
        """Die: the socket and the doorbell close."""
        assert self.sock is not None and self.bell is not None
        self.sock.close()
        self.bell.close()

    # --- rings -----------------------------------------------------------------------------------------------------------

    def there(self, number: int) -> bool:
        """Whether request `number` was published [RING-16]."""
        return self._words[0].load(PAGE + SLOT * (number % SLOTS) + SEQUENCE) == (number + 1) & U32

    def take(self, *, give: bool = True) -> Asked:
        """The next request, checked as every request must be [REG-4, RING-2, RING-16]; its slot given back."""
        until(lambda: self.there(self.taken), "a request")
        at = PAGE + SLOT * (self.taken % SLOTS)
        slot = self._maps[0][at : at + SLOT]
        self.taken = (self.taken + 1) & U32
        asked = Asked.parse(slot)
        expect(asked.op in USED, "an operation that is built", f"op {asked.op:#x}")
        used = [*USED[asked.op], (12, 16)]
        strange = [n for n in range(10, SEQUENCE) if slot[n] and not any(b <= n < e for b, e in used)]
        expect(not strange, f"zeros in the octets that op {asked.op:#x} does not use [REG-4]", slot.hex(" "))
        posted = asked.flags & RequestFlag.POSTED
        expect(asked.flags in (0, RequestFlag.POSTED), "no flag but posted", f"{asked.flags:#x}")
        expect(not posted or asked.op in (Op.BAR_WRITE, Op.BAR_WRITES), "posted writes only", f"op {asked.op:#x}")
        expect(
            asked.op != Op.BAR_WRITES or bool(posted and not asked.id), "a pack of writes posted, id 0", slot.hex(" ")
        )
        expect(
            (asked.device, asked.generation) == (0, self.generation),
            f"device 0, generation {self.generation}",
            slot.hex(" "),
        )
        if give:
            self.give_back()
        return asked

    def give_back(self) -> None:
        """Give the slots of the requests back."""
        self.store("req_cons", self.taken)
        if self.front("sleeping"):
            self.kick()

    def answer(self, asked: Asked, *, tell: bool = True, sequence: int | None = None, **fields: Any) -> None:
        """Publish the response to `asked`, with other fields where `fields` says so; announce it and kick a sleeper."""
        plain = Answer(asked.op, 0, asked.id, asked.device, 0, self.generation)
        answer = plain._replace(sequence=(self.filled + 1) & U32 if sequence is None else sequence, **fields)
        self.put(answer.build())
        if tell:
            self.tell()

    def put(self, octets: bytes, ring: RingIndex = RingIndex.RESPONSE) -> None:
        """The 64 octets of a slot, its sequence last."""
        number = self.filled if ring is RingIndex.RESPONSE else self.hinted
        at = PAGE + (ring is RingIndex.EVENT) * SLOTS * SLOT + SLOT * (number % SLOTS)
        self._maps[1][at : at + SEQUENCE] = octets[:SEQUENCE]
        self._words[1].store(at + SEQUENCE, int.from_bytes(octets[SEQUENCE:], "little"))
        if ring is RingIndex.RESPONSE:
            self.filled = (self.filled + 1) & U32
        else:
            self.hinted = (self.hinted + 1) & U32

    def tell(self) -> None:
        """Announce responses and events, and kick if the front sleeps [RING-11]."""
        self.store("rsp_prod", self.filled)
        self.store("evt_prod", self.hinted)
        if self.front("sleeping"):
            self.kick()

    def interrupt(self, count: int, *, hint: bool = True) -> None:
        """The counter of vector 0 comes to `count`, then its total, then the event, then a kick [IRQ-5, IRQ-20]."""
        self.store_at(COUNTERS, count)
        self.store_at(TOTALS, count)
        if hint:
            self.hint(count)
        self.kick()

    def hint(self, value: int) -> None:
        """An event of an interrupt, true or not."""
        self.put(Hint(1, 0, 0, 0, 0, self.generation, value, (self.hinted + 1) & U32).build(), RingIndex.EVENT)
        self.tell()

    def sleeps(self) -> None:
        """The front says that it sleeps, having announced what it published [RING-10, RING-15]."""
        until(lambda: self.front("sleeping") != 0, "a front that waits and says that it sleeps [RING-10]")
        published = self.taken
        while self.there(published) and published - self.taken < SLOTS:
            published += 1
        told = self.front("req_prod")
        expect(told == published & U32, f"{published} requests announced before it sleeps [RING-15]", str(told))

    def held(self) -> list[int]:
        """The descriptors that the front was given, with this side's names."""
        return self._held

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)
