# SPDX-License-Identifier: MIT
"""``spec/session.gen.md``: one session from connect to close: its octets in words, and the words of the headers that change."""

from collections.abc import Iterator

from pcisplit import pci, wire
from pcisplit.gen.c_header import NOTE
from pcisplit.proto.explain import Explanation, explain
from pcisplit.proto.layout import Layout
from pcisplit.proto.meeting import Hello, Need, Reply
from pcisplit.proto.slots import Event, Request, Response
from pcisplit.proto.vectors import BOOT
from pcisplit.wire import EventKind, Op, Record, RequestFlag, State

_PLACES = Layout.of([1])
_GENERATION = BOOT.devices[0].generation
_ID = BOOT.devices[0].device_id << 16 | BOOT.devices[0].vendor
_HELLO = Hello("edu", (Need("edu0", 1),), BOOT.windows[0].size, 28)
_FACTORIAL, _STATUS = 0x08, 0x20


class _Rings:
    """Counts what was filled, so that places, sequences and announcements are those of a real session."""

    def __init__(self) -> None:
        self.requests = self.responses = 0

    def request(self, **fields: object) -> Iterator[str]:
        asked = Request(generation=_GENERATION, sequence=self.requests + 1, **fields)  # type: ignore[arg-type]
        at = _PLACES.places.requests + self.requests * wire.SLOT_SIZE
        yield from _octets("request", asked.to_bytes(), f"f2b + {at:#x}, slot {self.requests} of the request ring")
        self.requests += 1
        yield from _changes(("f2b", wire.FRONT_HEADER, "req_prod", self.requests, "RING-15"))

    def response(self, **fields: object) -> Iterator[str]:
        answer = Response(generation=_GENERATION, sequence=self.responses + 1, **fields)  # type: ignore[arg-type]
        at = _PLACES.places.responses + self.responses * wire.SLOT_SIZE
        yield from _octets("response", answer.to_bytes(), f"b2f + {at:#x}, slot {self.responses} of the response ring")
        self.responses += 1
        yield from _changes(("b2f", wire.BACK_HEADER, "rsp_prod", self.responses, "RING-15"))


def text() -> str:
    return "\n".join([*_top(), *_meeting(), *_states(), *_accesses(), *_closing(), ""])


def _top() -> Iterator[str]:
    yield from ("# A session, octet by octet", "", NOTE, "")
    yield "A front whose driver `edu` needs one device of this name, one MSI vector and 2 MiB of DMA memory meets a back,"
    yield "sets the device a task, hears its interrupt, reads what came of it, and leaves. It binds nobody: the clauses do."
    yield "Fields that are zero are left out of the words. Numbers behind `+` are places in a region."


def _meeting() -> Iterator[str]:
    yield from ("", "## 1. The meeting", "", "The front connects, and sends a hello within a second [MEET-2].")
    yield from _octets("hello", _HELLO.to_bytes(), "one message on the socket")
    yield from (
        "",
        "The back finds the device free, makes the regions, and answers [MEET-8]. Beside the octets come five descriptors:",
    )
    yield "`f2b`, `b2f`, the doorbell of the back (an eventfd), that of the front (a socket), the DMA memory."
    yield from _octets("reply", Reply(boot_info=BOOT.to_bytes(), fds=5).to_bytes(), "one message on the socket")


def _states() -> Iterator[str]:
    yield from (
        "",
        "## 2. The first states",
        "",
        "The back wrote the magics, the epoch and its state before it sent the reply.",
    )
    front = {"magic": wire.F2B_MAGIC, "epoch": 1}
    back = {"magic": wire.B2F_MAGIC, "state": State.INIT_WAIT, "devices": 1, "session": BOOT.session, "epoch": 1}
    yield from _octets("front_header", wire.FRONT_HEADER.build(front), "f2b + 0x0", show=64)
    yield from _octets("back_header", wire.BACK_HEADER.build(back), "b2f + 0x0", show=64)
    yield from (
        "",
        "The front checks sizes, seals and magics [REG-5], and says that it is there; kicks follow Initialised and Connected",
    )
    yield "[RING-12, RING-18]. The back seals `f2b` between Initialised and Connected [REG-3]."
    yield from _changes(
        _state("f2b", State.INITIALISING),
        _state("f2b", State.INITIALISED),
        _state("b2f", State.CONNECTED),
        _state("f2b", State.CONNECTED),
    )


def _accesses() -> Iterator[str]:
    rings, msi = _Rings(), 0x21
    yield from (
        "",
        "## 3. Configuration space",
        "",
        "Vendor and device, in one read; then memory decode and bus mastering are switched on [CFG-7].",
    )
    yield from rings.request(op=Op.CONF_READ, id=1, offset=pci.VENDOR_ID, width=4)
    yield from rings.response(op=Op.CONF_READ, id=1, value=_ID)
    yield from rings.request(
        op=Op.CONF_WRITE, id=2, offset=pci.COMMAND, width=2, value=pci.COMMAND_MEM | pci.COMMAND_MASTER
    )
    yield from rings.response(op=Op.CONF_WRITE, id=2)
    yield from ("", "## 4. Interrupts on, and a task", "", "The vector that the meeting gave is enabled [IRQ-1].")
    yield from rings.request(op=Op.ENABLE_MSI, id=msi, count=1)
    yield from rings.response(op=Op.ENABLE_MSI, id=msi)
    yield from (
        "",
        'Two registers are written by one posted pack [BAR-40], which has no id and no answer [BAR-42]: "interrupt when',
    )
    yield 'you have it", and "the factorial of 5". Its slot is published by its sequence; the front announces it at the latest'
    yield "before it sleeps [RING-15]."
    pack = (_STATUS, 0x80, _FACTORIAL, 5)
    yield from rings.request(op=Op.BAR_WRITES, flags=RequestFlag.POSTED, width=4, element=pack, count=2)
    yield from (
        "",
        "Before it sleeps the front gives back what it took [RING-17], stores 1 to `sleeping`, and looks once more [RING-10].",
    )
    yield from _changes(
        ("f2b", wire.FRONT_HEADER, "rsp_cons", rings.responses, "RING-17"),
        ("f2b", wire.FRONT_HEADER, "sleeping", 1, "RING-10"),
    )
    run = BOOT.devices[0].vectors[0]
    yield from (
        "",
        "## 5. The interrupt",
        "",
        "The back adds to the counter, then to its total [IRQ-5, IRQ-20]; the event is a hint",
    )
    yield "[REG-30]. The front sleeps, so it is kicked."
    yield from _event(Event(EventKind.INTERRUPT, generation=_GENERATION, value=1, sequence=1))
    yield from ("", "| region | place | | from | to | |", "|---|---|---|---|---|---|")
    yield f"| b2f | +{run.counters:#x} | counter of vector 0 | 0 | 1 | [IRQ-5] |"
    yield f"| b2f | +{run.totals:#x} | total of vectors 0 to 63 | 0 | 1 | [IRQ-20] |"
    yield from _changes(
        ("b2f", wire.BACK_HEADER, "evt_prod", 1, "RING-15"), ("f2b", wire.FRONT_HEADER, "sleeping", 0, "RING-10")
    )
    yield from (
        "",
        "## 6. What came of it",
        "",
        "5! = 120. It cannot overtake the pack: one device, one order [ORD-1].",
    )
    yield from rings.request(op=Op.BAR_READ, id=0x22, offset=_FACTORIAL, width=4)
    yield from rings.response(op=Op.BAR_READ, id=0x22, value=120)
    yield from ("", "Slots are given back now and then, at the latest before a side sleeps [RING-17].")
    yield from _changes(
        ("b2f", wire.BACK_HEADER, "req_cons", rings.requests, "RING-17"),
        ("f2b", wire.FRONT_HEADER, "rsp_cons", rings.responses, "RING-17"),
        ("f2b", wire.FRONT_HEADER, "evt_cons", 1, "RING-17"),
    )


def _event(event: Event) -> Iterator[str]:
    yield from _octets("event", event.to_bytes(), f"b2f + {_PLACES.places.events:#x}, slot 0 of the event ring")


def _closing() -> Iterator[str]:
    yield from (
        "",
        "## 7. The end",
        "",
        "The front stops its driver and says Closing; the back ends what it does for the session, puts the device",
    )
    yield "in order, and says Closed; `reason` stays 0. Then it closes the socket [LIFE-7]."
    yield from _changes(
        _state("f2b", State.CLOSING),
        _state("b2f", State.CLOSING),
        _state("b2f", State.CLOSED),
        _state("f2b", State.CLOSED),
    )


# --- how it looks ------------------------------------------------------------------------------------------------------------


def _state(region: str, state: State) -> tuple[str, Record, str, int, str]:
    return region, wire.FRONT_HEADER if region == "f2b" else wire.BACK_HEADER, "state", state, "LIFE-1"


def _changes(*words: tuple[str, Record, str, int, str]) -> Iterator[str]:
    """Words of the headers and what they become."""
    yield from ("", "| region | place | word | becomes | |", "|---|---|---|---|---|")
    for region, record, name, value, clause in words:
        said = f"{int(value)} ({State(value).name.lower()})" if name == "state" else str(value)
        yield f"| {region} | +{record.offset(name):#x} | `{name}` | {said} | [{clause}] |"


def _octets(kind: str, octets: bytes, where: str, show: int = 0) -> Iterator[str]:
    """The octets in hexadecimal, and what they say, without the fields that are zero."""
    said = explain(octets, kind)
    assert not said.problems, said.problems
    yield from ("", f"**{kind.replace('_', '-')}**, {where}: {said.says}", "", "```")
    yield from (f"# message: {kind}",) if not show else (f"# {kind}, its first line",)
    yield from (_row(octets, at) for at in range(0, show or len(octets), 16))
    yield from ("```", "", "| octet | field | value | |", "|---|---|---|---|")
    yield from _words(said)


def _row(octets: bytes, at: int) -> str:
    return octets[at : at + 16].hex(" ")


def _words(said: Explanation) -> Iterator[str]:
    for part in said.parts:
        if len(said.parts) > 1:
            yield f"| | **{part.title}** | | |"
        for number, line in enumerate(part.lines):
            if any(line.octets) or not number:
                yield f"| {line.at} | `{line.field}` | {line.value} | {line.meaning} |"
