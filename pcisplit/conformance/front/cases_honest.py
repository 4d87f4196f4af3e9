# SPDX-License-Identifier: MIT
"""Cases of a front with an honest back."""

from pcisplit import wire
from pcisplit.conformance.boot import BLOCK_SIZE
from pcisplit.conformance.case import expect
from pcisplit.conformance.front.back import SLOTS, Script
from pcisplit.conformance.front.case import READ, case
from pcisplit.conformance.front.process import Bench, Told
from pcisplit.conformance.octets import U32, poke
from pcisplit.conformance.watch import still, until
from pcisplit.wire import Error, Feature, Op, State


@case("MEET-2", "MEET-13", "LIFE-1", "RING-12", "LIFE-4")
def case_session(bench: Bench) -> None:
    """Hello, Initialised, Connected and Closing in their order, each kicked, and nothing else on the socket."""
    bench.begin()
    bench.lives()
    bench.start("close")
    bench.back.becomes(State.CLOSING)
    bench.back.step(State.CLOSING)
    bench.back.step(State.CLOSED)
    assert bench.back.sock
    bench.back.sock.shutdown(1)
    bench.end()
    bench.back.hung_up("that has closed its session")


@case("LIFE-1")
def case_not_before_the_back(bench: Bench) -> None:
    """A front stays Initialised until the back is Connected, and publishes nothing."""
    bench.say("deadline 2000")
    bench.start(f"connect {bench.back.path} dev0")
    bench.back.meet()
    bench.back.becomes(State.INITIALISED)
    still(0.1, lambda: bench.back.front("state"), "the front's state before the back is Connected")
    bench.back.step(State.CONNECTED)
    bench.back.becomes(State.CONNECTED)
    bench.end()


@case("REG-4", "RING-16", "RING-1", "VER-4")
def case_requests(bench: Bench) -> None:
    """Each call is one request, with its fields where the tables have them, and zeros elsewhere."""
    bench.begin()
    for line, op, wanted in (
        ("config-read 0x40 4", Op.CONF_READ, {"offset": 0x40, "value": 0}),
        ("config-write 4 2 6", Op.CONF_WRITE, {"offset": 4, "value": 6}),
        ("bar-read 0 0x18 8", Op.BAR_READ, {"offset": 0x18}),
        ("bar-write 0 0xfffc 4 0xdeadbeef", Op.BAR_WRITE, {"offset": 0xFFFC, "value": 0xDEADBEEF}),
        ("irq-enable", Op.ENABLE_MSI, {"type": 0, "first": 0, "count": 1}),
    ):
        bench.start(line)
        asked = bench.back.take()
        fields = {name: asked.fields[name] for name in wanted}
        expect((asked.op, fields) == (op, wanted), f"op {op:#x} with {wanted} for {line!r}", str(asked))
        width = int(line.split()[-1 if op in (Op.CONF_READ, Op.BAR_READ) else -2], 0) if op != Op.ENABLE_MSI else 0
        expect(asked.width == width, f"width {width}", str(asked.width))
        bench.back.answer(asked, value=0x77 if op in (Op.CONF_READ, Op.BAR_READ) else 0)
        came = bench.end()
        expect(came == ([0x77] if op in (Op.CONF_READ, Op.BAR_READ) else []), f"the answer of {line!r}", str(came))


@case("RING-16", "RING-4", "RING-17")
def case_many_laps(bench: Bench) -> None:
    """Two hundred reads go round rings of 16 slots; responses are given back at the latest two at a time."""
    bench.begin()
    for number in range(200):
        bench.lives(number)
        behind = (bench.back.filled - bench.back.front("rsp_cons")) & U32
        expect(behind <= max(SLOTS // 8, 1), "an eighth of the response ring held at most", f"{behind} slots")


@case("RING-9", "RING-7")
def case_ids(bench: Bench) -> None:
    """The id of a request whose caller gave up is not used again before its answer has come."""
    bench.begin()
    bench.start(READ)
    lost = bench.back.take()
    bench.fails(Error.TIMEOUT, what="a read that nobody answers")
    for number in range(40):
        bench.start(READ)
        asked = bench.back.take()
        expect(asked.id != lost.id, f"another id than {lost.id:#x}", "the same")
        bench.back.answer(asked, value=number)
        expect(bench.end() == [number], str(number), "another value")


@case("RING-10", "RING-11", "RING-15")
def case_sleeps_and_wakes(bench: Bench) -> None:
    """A front that waits long says that it sleeps, has announced what it published, and wakes by its doorbell."""
    bench.begin()
    for number in range(20):
        bench.back.store("sleeping", number % 2)
        bench.start(READ)
        asked = bench.back.take()
        bench.back.sleeps()
        bench.back.answer(asked, value=number)
        expect(bench.end() == [number], str(number), "another value")


@case("RING-11", "RING-15")
def case_wakes_the_back(bench: Bench) -> None:
    """A request for a back that sleeps is announced and kicked, a posted write too when its call has returned."""
    bench.begin()
    bench.back.store("sleeping", 1)
    for line in (READ, "bar-post 0 0 4 1"):
        bench.back.kicks()
        bench.start(line)
        bench.back.kicked(f"with {line!r}")
        until(lambda: bench.back.front("req_prod") == (bench.back.taken + 1) & U32, "the request announced")
        asked = bench.back.take()
        if asked.op == Op.BAR_READ:
            bench.back.answer(asked)
        bench.end()


@case("RING-15")
def case_posts_are_announced(bench: Bench) -> None:
    """Posted writes to a back that is awake are announced too when their calls have returned."""
    bench.begin()
    for number in range(1, 11):
        bench.say(f"bar-post 0 4 4 {number}")
        told = bench.back.front("req_prod")
        expect(told == number, f"{number} requests announced", str(told))
    for number in range(1, 11):
        asked = bench.back.take()
        expect(asked.fields["value"] == number, f"the write of {number}", str(asked))


@case("RING-4", "RING-3")
def case_full_ring(bench: Bench) -> None:
    """No slot is published that the back has not given back; with room again the front goes on."""
    bench.begin()
    for number in range(SLOTS):
        bench.say(f"bar-post 0 4 4 {number}")
    bench.start("bar-post 0 4 4 99")
    bench.fails(Error.TIMEOUT, Error.BUSY, what="a write for which there is no room")
    for number in range(SLOTS):
        expect(bench.back.take(give=False).fields["value"] == number, f"the write of {number}", "another")
    bench.back.give_back()
    bench.lives()


@case("MEET-6", "VER-6", "BAR-40", "RING-17")
def case_many_reads(bench: Bench) -> None:
    """Many reads come as packs or one by one, in order, each place once; without the feature never as packs."""
    for features in (int(wire.BUILT), int(wire.BUILT & ~Feature.PACKED)):
        with Bench(bench.command) as other:
            other.begin(Script(features=features))
            places = [4 * n for n in (3, 1, 2, 3, 0, 7, 9, 8, 11, 10, 5)]
            other.start("read-many 0 4 " + " ".join(map(str, places)))
            seen: list[int] = []
            while len(seen) < len(places):
                seen += serve_reads(other, packed=bool(features & Feature.PACKED))
            expect(seen == places, f"reads of {places}", str(seen))
            came = other.end()
            expect(came == [place + 1 for place in places], "the value of each place", str(came))
            behind = (other.back.filled - other.back.front("rsp_cons")) & U32
            expect(behind <= max(SLOTS // 8, 1), "an eighth of the response ring held at most", f"{behind} slots")


def serve_reads(bench: Bench, *, packed: bool) -> list[int]:
    """Answer one request of reads with offset + 1 for each; the offsets."""
    asked = bench.back.take()
    if asked.op == Op.BAR_READ:
        bench.back.answer(asked, value=asked.fields["offset"] + 1)
        return [asked.fields["offset"]]
    expect(packed and asked.op == Op.BAR_READS, "reads in a feature in force", f"op {asked.op:#x}")
    count = asked.fields["count"]
    expect(1 <= count <= wire.PACK_READS, "1 to 10 reads in a pack", str(count))
    offsets = list(asked.fields["element"][:count])
    bench.back.answer(asked, values=tuple(place + 1 for place in offsets), done=count)
    return offsets


@case("IRQ-6", "REG-31")
def case_interrupts(bench: Bench) -> None:
    """Interrupts are what the counter moved by, with or without events, and events alone are nothing."""
    bench.begin()
    bench.start("irq-enable")
    bench.back.answer(bench.back.take())
    bench.end()
    bench.back.interrupt(3)
    came = bench.say("irq-wait 2000")
    expect(came == [3], "3 interrupts", str(came))
    bench.start("irq-wait 2000")
    bench.back.sleeps()
    bench.back.interrupt(4, hint=False)
    came = bench.end()
    expect(came == [1], "1 interrupt without an event", str(came))
    bench.start("irq-wait 300")
    bench.back.hint(99)
    try:
        came = bench.end()
    except Told:
        return
    expect(came == [0], "no interrupt of an event alone", str(came))


@case("BOOT-3", "VER-2")
def case_unknown_records(bench: Bench) -> None:
    """Records of a kind that nobody knows, and octets behind those that are known, are skipped."""
    stranger = (0x7F).to_bytes(2, "little") + (40).to_bytes(2, "little") + b"\xee" * 36

    def more(octets: bytes) -> bytes:
        count = int.from_bytes(octets[12:16], "little")
        length = int.from_bytes(octets[BLOCK_SIZE + 2 : BLOCK_SIZE + 4], "little")
        longer = poke(octets, BLOCK_SIZE + 2, (length + 8).to_bytes(2, "little"))
        head, first, rest = longer[:BLOCK_SIZE], longer[BLOCK_SIZE : BLOCK_SIZE + length], longer[BLOCK_SIZE + length :]
        whole = head + first + b"\xff" * 8 + stranger + rest
        return poke(poke(whole, 8, len(whole).to_bytes(4, "little")), 12, (count + 1).to_bytes(4, "little"))

    bench.begin(Script(octets=more))
    bench.lives()


@case("MEET-9")
def case_refusal(bench: Bench) -> None:
    """A refusal is told with its error."""
    bench.start(f"connect {bench.back.path} dev0")
    bench.back.refuse(Error.DEVICE_TAKEN, "dev0 is taken: try later")
    bench.fails(Error.DEVICE_TAKEN, what="a connect that is refused")
