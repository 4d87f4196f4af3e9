# SPDX-License-Identifier: MIT
"""The raw peer: a connection that speaks in octets and rings, able to keep every rule of the rings and to break any."""

from typing import Any

from pcisplit.conformance.boot import Ring
from pcisplit.conformance.case import DEADLINE, Violation, expect
from pcisplit.conformance.connection import Connection, Gone, Refused
from pcisplit.conformance.octets import SEQUENCE, SLOT, U32, Answer, Hint, request
from pcisplit.wire import Op, RegionIndex, RingIndex

__all__ = ["Gone", "Peer", "Refused", "Violation"]


class Peer(Connection):
    """One connection and, after the meeting, one session."""

    # --- rings --------------------------------------------------------------------------------------------------------

    def publish(self, *slots: bytes) -> None:
        """Put 64-octet slots on the request ring, full or not, each with its sequence; announce them."""
        self.fill(*slots)
        self.tell()

    def fill(self, *slots: bytes) -> None:
        """Publish slots by their sequence alone: `prod` does not tell of them yet [RING-16]."""
        for slot in slots:
            self.write(self.req_prod, slot, (self.req_prod + 1) & U32)
            self.req_prod = (self.req_prod + 1) & U32

    def write(self, number: int, slot: bytes, sequence: int | None = None) -> None:
        """Octets 0 to 59 of slot `number`, then its sequence, if any: a back that sees the one sees the other."""
        ring = self.ring(RingIndex.REQUEST)
        at = ring.offset + SLOT * (number % ring.slots)
        self.maps[RegionIndex.F2B][at : at + SEQUENCE] = slot[:SEQUENCE]
        if sequence is not None:
            self._words[RegionIndex.F2B].store(at + SEQUENCE, sequence & U32)

    def tell(self) -> None:
        """Announce what was filled, and kick if the back sleeps [RING-11, RING-15]."""
        self.store("req_prod", self.req_prod)
        self.announce()

    def answered(self) -> bool:
        """Whether the next response is there, announced or not."""
        return self._there(RingIndex.RESPONSE, self.rsp_cons)

    def hinted(self) -> bool:
        """Whether the next event is there."""
        return self._there(RingIndex.EVENT, self.evt_cons)

    def _there(self, index: RingIndex, number: int) -> bool:
        ring = self.ring(index)
        at = ring.offset + SLOT * (number % ring.slots) + SEQUENCE
        return self._words[ring.region].load(at) == (number + 1) & U32

    def count_answers(self) -> int:
        """How many responses are there that were not taken."""
        count = 0
        while count < self.ring(RingIndex.RESPONSE).slots and self._there(RingIndex.RESPONSE, self.rsp_cons + count):
            count += 1
        return count

    def take(self, count: int = 1, timeout: float = DEADLINE) -> list[Answer]:
        """The next `count` responses, in ring order; given back an eighth of the ring at a time, and at the end."""
        ring, answers, given = self.ring(RingIndex.RESPONSE), list[Answer](), self.rsp_cons
        while len(answers) < count:
            if not self.answered():
                if given != self.rsp_cons:
                    given = self._give("rsp_cons", self.rsp_cons)
                self.wait(self.answered, f"response {len(answers) + 1} of {count}", timeout, self._look)
            answers.append(Answer.parse(self._slot(ring, self.rsp_cons)))
            self.rsp_cons = (self.rsp_cons + 1) & U32
            if (self.rsp_cons - given) & U32 >= max(ring.slots // 8, 1):
                given = self._give("rsp_cons", self.rsp_cons)
        if given != self.rsp_cons:
            self._give("rsp_cons", self.rsp_cons)
        return answers

    def _look(self) -> None:
        self.ahead("rsp_prod", self.rsp_cons)

    def hints(self) -> list[Hint]:
        """Every event that is there now."""
        ring, hints = self.ring(RingIndex.EVENT), list[Hint]()
        while self.hinted() and len(hints) < ring.slots:
            hints.append(Hint.parse(self._slot(ring, self.evt_cons)))
            self.evt_cons = (self.evt_cons + 1) & U32
        self._give("evt_cons", self.evt_cons)
        return hints

    def _give(self, index: str, count: int) -> int:
        self.store(index, count)
        self.announce()
        return count

    def ahead(self, index: str, taken: int) -> int:
        """What a `prod` of the back announces that was not taken, signed; Violation if that cannot be [RING-2, RING-3]."""
        ring = self.ring(RingIndex.RESPONSE if index == "rsp_prod" else RingIndex.EVENT)
        ahead = (self.back(index) - taken + (1 << 31) & U32) - (1 << 31)
        expect(ahead <= ring.slots, f"{index} at most {ring.slots} ahead of what was taken", f"{ahead} ahead")
        if ahead > 0:
            expect(self._there(RingIndex(ring.index), taken), f"the slot that {index} announces", "another sequence")
        return ahead

    def _slot(self, ring: Ring, number: int) -> bytes:
        at = ring.offset + SLOT * (number % ring.slots)
        return self.maps[ring.region][at : at + SLOT]

    # --- requests -----------------------------------------------------------------------------------------------------

    def slot(self, op: int, **fields: Any) -> bytes:
        """A request with the next id and the device's generation, unless `fields` says otherwise."""
        self.next_id = (self.next_id + 1) & U32
        device = fields.get("device", 0)
        known = self.generations[device] if device < len(self.generations) else 0
        own = 0 if op == Op.BAR_WRITES else self.next_id  # a pack of writes has none [BAR-42]
        return request(op, **{"id": own, "generation": known} | fields)

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

    def ask(self, op: int, **fields: Any) -> Answer:
        """Publish one request and take its answer, whatever it says."""
        return self.ask_all([self.slot(op, **fields)])[0]

    def do(self, op: int, **fields: Any) -> Answer:
        """Like :meth:`ask`, but the answer must be success."""
        answer = self.ask(op, **fields)
        wanted = ", ".join(f"{name} {value}" for name, value in fields.items())
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
