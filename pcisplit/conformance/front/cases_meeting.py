# SPDX-License-Identifier: MIT
"""Cases of a front whose back gives boot-info, regions and doorbells that no front may take."""

import dataclasses
import os
from collections.abc import Callable

from pcisplit import wire
from pcisplit.conformance.boot import BLOCK_SIZE
from pcisplit.conformance.front.back import FIXED, PAGE, SIZE, Script, block
from pcisplit.conformance.front.case import READ, case
from pcisplit.conformance.front.process import Bench
from pcisplit.conformance.octets import poke
from pcisplit.wire import Error


def unsound() -> dict[str, Script]:
    """Backs that no front may take a session of."""
    sound = block()

    def put(at: int, value: bytes) -> Script:
        return Script(octets=lambda octets: poke(octets, at, value))

    def of(**parts: object) -> Script:
        return Script(block=dataclasses.replace(sound, **parts))  # type: ignore[arg-type]

    def ring(number: int, **fields: int) -> Script:
        rings = list(sound.rings)
        rings[number] = dataclasses.replace(rings[number], **fields)
        return of(rings=tuple(rings))

    def region(number: int, **fields: int) -> Script:
        regions = list(sound.regions)
        regions[number] = dataclasses.replace(regions[number], **fields)
        return of(regions=tuple(regions))

    device = sound.devices[0]
    run = device.runs[0]

    def vectors(**fields: int) -> Script:
        return of(devices=(dataclasses.replace(device, runs=(dataclasses.replace(run, **fields),)),))

    return {
        "a wrong magic": put(0, b"ELF\0"),
        "another major version": put(4, b"\2\0"),
        "a wrong length": put(8, b"\0\1"),
        "more records than there are": put(12, b"\xff"),
        "a record of no length": put(BLOCK_SIZE + 2, b"\0\0"),
        "a block cut off": Script(octets=lambda octets: octets[:-8]),
        "no event ring": of(rings=sound.rings[:2]),
        "no doorbell": of(doorbells=sound.doorbells[:1]),
        "no b2f": of(regions=sound.regions[:1]),
        "a ring of 8 slots": ring(0, slots=8),
        "a ring of 24 slots": ring(0, slots=24),
        "a ring of 2^31 slots": ring(1, slots=1 << 31),
        "a ring beyond its region": ring(1, offset=SIZE - 64),
        "a ring whose end wraps": ring(0, offset=(1 << 64) - 64),
        "a ring that is not aligned": ring(0, offset=PAGE + 8),
        "requests in b2f": ring(0, region=1),
        "a device state beyond b2f": of(devices=(dataclasses.replace(device, state_offset=SIZE),)),
        "counters beyond b2f": vectors(counters=SIZE),
        "counters that are not aligned": vectors(counters=run.counters + 4),
        "4096 vectors": vectors(count=4096),
        "f2b that the front may not write": region(0, writable=0),
        "b2f that the front may write": region(1, writable=1),
        "a descriptor that is not there": region(0, fd=60),
        "a size that f2b does not have": region(0, size=2 * SIZE),
    }


@case("BOOT-4", "RING-1", "THR-31", "THR-8", "BOOT-3")
def case_unsound_boot_info(bench: Bench) -> None:
    """A block that is wrong, lacks something, or places something outside its region is refused with op_failed."""
    for what, script in unsound().items():
        with Bench(bench.command) as other:
            other.refuses(script, Error.OP_FAILED, what=f"a back with {what}")


@case("VER-1", "BOOT-4")
def case_wrong_reply(bench: Bench) -> None:
    """A reply of another major version, or one that is no reply, is refused."""
    replies = {
        "version 2": lambda octets: poke(octets, 4, b"\2\0"),
        "a wrong magic": lambda octets: poke(octets, 0, b"GET "),
        "a wrong length": lambda octets: poke(octets, 8, b"\1\0"),
        "8 octets": lambda octets: octets[:8],
    }
    for what, change in replies.items():
        with Bench(bench.command) as other:
            other.refuses(Script(reply=change), Error.OP_FAILED, Error.WRONG_VERSION, what=f"a reply of {what}")


@case("REG-5")
def case_unsealed_regions(bench: Bench) -> None:
    """Regions without their seals or their magic are refused."""
    scripts = {
        "b2f that can be written": Script(b2f_seals=FIXED | 1),
        "b2f without seals": Script(b2f_seals=0),
        "b2f that can shrink": Script(b2f_seals=0x10 | 4 | 1),
        "f2b that can shrink": Script(f2b_seals=4),
        "f2b without seals": Script(f2b_seals=0),
        "a wrong magic in f2b": Script(magics=(0, wire.B2F_MAGIC)),
        "a wrong magic in b2f": Script(magics=(wire.F2B_MAGIC, wire.F2B_MAGIC)),
        "f2b smaller than the block says": Script(f2b_size=PAGE),
    }
    for what, script in scripts.items():
        with Bench(bench.command) as other:
            other.refuses(script, Error.OP_FAILED, what=f"a back with {what}")


@case("THR-33", "LIFE-30")
def case_strange_doorbells(bench: Bench) -> None:
    """Doorbells that are not an eventfd and a stream socket are refused, before anything is read from them."""

    def pipe() -> int:
        read, write = os.pipe()
        os.close(write)
        return read

    zero: Callable[[], int] = lambda: os.open("/dev/zero", os.O_RDWR)  # noqa: E731
    for what, fds in {
        "a doorbell to us that is /dev/zero": {3: zero},
        "a doorbell to us that is a pipe": {3: pipe},
        "a doorbell to us that is an eventfd": {3: lambda: os.eventfd(1)},
        "a doorbell to the back that is /dev/zero": {2: zero},
        "a doorbell to the back that is a pipe": {2: pipe},
    }.items():
        with Bench(bench.command) as other:
            other.refuses(Script(fds=fds), Error.OP_FAILED, what=f"a back with {what}")


@case("THR-33", "LIFE-30")
def case_blocking_doorbells(bench: Bench) -> None:
    """Doorbells that the back has made blocking, ours with kicks queued, block no call."""
    bench.begin()
    os.set_blocking(bench.back.eventfd, True)
    for fd in bench.back.held():
        os.set_blocking(fd, True)
    for _ in range(64):
        bench.back.kick()
    bench.start(READ)
    bench.back.take()
    bench.fails(Error.TIMEOUT, what="a read that nobody answers")
    bench.lives()
