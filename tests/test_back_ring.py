# SPDX-License-Identifier: MIT
"""The back's side of the rings: the serve loop in C by itself, and a front in Python that does what no honest one would."""

import mmap
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from pcisplit.back.core.native import Work
from pcisplit.back.worker.owner import Owner
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.slots import Request, Response, sequence_of
from pcisplit.ring.words import Words
from pcisplit.wire import BACK_HEADER, BUILT_OPERATIONS, SLOT_SIZE, Op, RequestFlag, RingIndex, State, Uses
from tests.offsets import offset_of
from tests.pair import Pair, Recorder

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 20.0


@pytest.mark.clause("RING-16", "RING-3", "RING-6", "BAR-41", "BAR-42", "BAR-44")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "undefined"])
def test_the_serve_loop_by_itself(tool: Callable[[str], str], tmp_path: Path, sanitizer: str) -> None:
    """Indices that wrap, packs with bad counts and elements, turns, full rings, strange sequences."""
    package, program = ROOT / "pcisplit", tmp_path / "back_test"
    flags = [
        f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all",
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-g",
        "-O1",
        "-pthread",
    ]
    sources = [ROOT / "tests/c/back_test.c", package / "ring/guard.c", *sorted((package / "back/core").glob("*.c"))]
    includes = [f"-I{package / name}" for name in ("ring", "back/core")]
    done = subprocess.run([tool("gcc"), *flags, *includes, *sources, "-o", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


class RawFront:
    """A front by hand, around the back of a Pair: fills slots, announces and kicks as it is told to, each by itself."""

    def __init__(self, *devices: Recorder, spin: float = 0.0) -> None:
        self.pair = Pair(*devices, start=False, spin=spin)
        info = parse_boot_info_untrusted(self.pair.boot_info)
        self._maps = [
            mmap.mmap(self.pair._fds[0], info.regions[0].size),
            mmap.mmap(self.pair._fds[1], info.regions[1].size, prot=mmap.PROT_READ),
        ]
        self.f2b, self.b2f = Words(self._maps[0]), Words(self._maps[1])
        self._rings = {ring.index: ring for ring in info.rings}
        self.filled = self.taken = 0

    def __enter__(self) -> Self:
        self.pair.start()
        for state in (State.INITIALISED, State.CONNECTED):
            self.f2b.store(offset_of("state"), state)
            self.kick()
            until(lambda: self.header()["state"] == State.CONNECTED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.f2b.release()
        self.b2f.release()
        self.pair.__exit__(kind, value, trace)

    def fill(self, request: Request) -> None:
        ring = self._rings[RingIndex.REQUEST]
        at = ring.offset + self.filled % ring.slots * SLOT_SIZE
        self._maps[0][at : at + SLOT_SIZE - 4] = request.to_bytes()[:-4]
        self.filled += 1
        self.f2b.store(at + SLOT_SIZE - 4, self.filled)

    def announce(self) -> None:
        self.f2b.store(offset_of("req_prod"), self.filled)

    def kick(self) -> None:
        os.eventfd_write(self.pair._fds[2], 1)

    def answer(self) -> Response:
        ring = self._rings[RingIndex.RESPONSE]
        at = ring.offset + self.taken % ring.slots * SLOT_SIZE
        self.taken += 1
        until(lambda: sequence_of(self._maps[1][at : at + SLOT_SIZE]) == self.taken)
        return Response.from_bytes_untrusted(self._maps[1][at : at + SLOT_SIZE])

    def answer_of(self, request: Request) -> Response:
        self.fill(request)
        self.announce()
        self.kick()
        return self.answer()

    def header(self) -> dict[str, int]:
        return BACK_HEADER.parse(self._maps[1][: BACK_HEADER.size], strict=False)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        os.sched_yield()


def nop(number: int) -> Request:
    return Request(Op.NOP, number, 0, 1)


@pytest.mark.clause("RING-22")
def test_a_kick_behind_which_something_was_announced_is_not_empty() -> None:
    """Also one that comes late, when its request has been found by its sequence and answered."""
    with RawFront(Recorder(), spin=DEADLINE) as front:
        before = front.header()["empty_kicks"]
        for number in range(40):
            front.fill(nop(number))
            assert front.answer().id == number  # the back spins
            front.announce()
            front.kick()
        assert front.answer_of(nop(40)).id == 40
        assert front.header()["empty_kicks"] == before
        front.kick()  # the back may hear it together with the last one
        assert front.answer_of(nop(41)).id == 41
        assert front.header()["empty_kicks"] <= before + 1


@pytest.mark.clause("RING-22")
def test_kicks_that_tell_nothing_are_counted_until_nobody_listens() -> None:
    """Requests that are only found by their sequence do not make a doorbell heard for ever."""
    with RawFront(Recorder()) as front:
        until(lambda: front.b2f.load(BACK_HEADER.offset("sleeping")) == 1)
        before = front.header()["empty_kicks"]
        for count in range(1, 18):
            front.kick()
            until(lambda count=count: front.header()["empty_kicks"] == before + count)  # type: ignore[misc]
        assert front.answer_of(nop(7)).id == 7  # while nobody listens: found when listening begins again


@pytest.mark.clause("RING-15", "RING-17")
def test_a_back_that_sleeps_has_told_everything() -> None:
    with RawFront(Recorder()) as front:
        for number in range(300):  # more than the rings are long
            assert front.answer_of(nop(number)).id == number
            until(lambda: front.b2f.load(BACK_HEADER.offset("sleeping")) == 1)
            assert front.b2f.load(BACK_HEADER.offset("rsp_prod")) == number + 1
            assert front.b2f.load(BACK_HEADER.offset("req_cons")) == number + 1
            front.f2b.store(offset_of("rsp_cons"), number + 1)


@pytest.mark.clause("RING-3")
def test_a_slot_that_is_announced_and_not_there_ends_the_session() -> None:
    with RawFront(Recorder()) as front:
        front.filled += 1
        front.announce()
        front.kick()
        until(lambda: front.pair.back.reason.name == "RING_OVERRUN")


@pytest.mark.clause("VER-5")
def test_every_operation_that_is_built_has_someone_who_does_it() -> None:
    device = Recorder()
    with Pair(device) as pair:
        owner: Owner = pair.back.owners[0]
        assert owner._handlers.keys() == {op for op, row in BUILT_OPERATIONS.items() if row.loop != "nop"}


@pytest.mark.parametrize("op", BUILT_OPERATIONS)
def test_an_owner_reads_what_the_record_says(op: Op) -> None:
    row = BUILT_OPERATIONS[op]
    request = Request(
        op,
        id=0 if row.uses & Uses.MUST_POST else 77,
        device=1,
        generation=3,
        flags=RequestFlag.POSTED if row.uses & Uses.MUST_POST else 0,
        region=5 if row.uses & Uses.REGION else 0,
        width=4 if row.uses & Uses.WIDTH else 0,
        offset=0x123456789ABC if row.uses & Uses.OFFSET else 0,
        value=0xFEDCBA9876543210 if row.uses & Uses.VALUE else 0,
        length=64 if row.uses & Uses.BLOCK else 0,
        element=tuple(range(10, 20)) if row.uses & Uses.PACK else (),
        first=9 if row.uses & Uses.VECTORS else 0,
        count=3 if row.uses & (Uses.PACK | Uses.VECTORS) else 0,
    )
    work = Work.of(request.to_bytes())
    assert (work.op, work.region, work.width, work.offset, work.value, work.length, work.first) == (
        (op, request.region, request.width, request.offset, request.value, request.length, request.first)
    )
    assert work.elements == request.element
    assert work.vectors == (request.count if row.uses & Uses.VECTORS else 0)
    assert str(work) == str(request)
