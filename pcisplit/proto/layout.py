# SPDX-License-Identifier: MIT
"""Where things are in the two regions of a session, by what the session needs. Fronts learn it from the boot-info block.

f2b: header page, request ring, bulk-in. b2f: header page, response ring, event ring, device states, per device with relayed
vectors a run of counters, totals, pending and mask words; bulk-out.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Self

from pcisplit import wire
from pcisplit.wire import Feature, VectorMode

PAGE = wire.PAGE_SIZE
#: Slots of the rings, and octets of each bulk area, as this back chooses them.
REQUEST_SLOTS, RESPONSE_SLOTS, EVENT_SLOTS = 256, 256, 64
BULK_SIZE = 65536

#: Places of descriptors in the reply: f2b, b2f, kick, rung; DMA memory if there is any; then direct vectors.
FD_F2B, FD_B2F, FD_KICK, FD_RUNG, FD_DMA = range(5)


class Run(NamedTuple):
    """Where the vectors of one device are in b2f, octets; of none: zeros."""

    counters: int = 0
    totals: int = 0
    pending: int = 0
    masks: int = 0


class Places(NamedTuple):
    """Where everything else is, octets from the start of its region; slots of each ring."""

    requests: int
    request_slots: int
    responses: int
    response_slots: int
    events: int
    event_slots: int
    bulk_in: int
    bulk_out: int
    bulk_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Sizes in octets. `states` and `runs` have an entry per device."""

    places: Places
    states: tuple[int, ...]
    runs: tuple[Run, ...]
    f2b_size: int
    b2f_size: int

    @classmethod
    def of(cls, vectors: Sequence[int], features: Feature = wire.BUILT) -> Self:
        """For a session whose devices have so many relayed vectors. ValueError beyond ``REGIONS_MAX_SIZE``."""
        bulk = BULK_SIZE if features & Feature.BLOCK else 0
        requests = responses = PAGE
        bulk_in = requests + REQUEST_SLOTS * wire.SLOT_SIZE
        events = responses + RESPONSE_SLOTS * wire.SLOT_SIZE
        states = events + EVENT_SLOTS * wire.SLOT_SIZE
        at, runs = _lines(states + len(vectors) * wire.DEVICE_STATE.size), []
        for count in vectors:
            run, at = _run(at, count)
            runs.append(run)
        bulk_out = _pages(at)
        places = Places(
            requests, REQUEST_SLOTS, responses, RESPONSE_SLOTS, events, EVENT_SLOTS, bulk_in, bulk_out, bulk
        )
        f2b_size, b2f_size = bulk_in + bulk, bulk_out + bulk
        if f2b_size + b2f_size > wire.REGIONS_MAX_SIZE:
            raise ValueError(f"{sum(vectors)} vectors need more shared memory than {wire.REGIONS_MAX_SIZE} octets")
        each = tuple(states + index * wire.DEVICE_STATE.size for index in range(len(vectors)))
        return cls(places, each, tuple(runs), f2b_size, b2f_size)


def _run(at: int, count: int) -> tuple[Run, int]:
    """A run of `count` vectors from `at` on, and where it ends. Each part begins a cache line: the front reads them singly."""
    if not count:
        return Run(), at
    words = 8 * -(-count // 64)
    totals = _lines(at + 8 * count)
    pending = _lines(totals + words)
    masks = _lines(pending + words)
    return Run(at, totals, pending, masks), _lines(masks + words)


def _lines(octets: int) -> int:
    return -(-octets // 64) * 64


def _pages(octets: int) -> int:
    return -(-octets // PAGE) * PAGE


def relayed(vectors: Sequence[int], modes: Sequence[VectorMode]) -> list[int]:
    """How many vectors of each device are relayed: of direct ones nothing is in the regions."""
    return [0 if mode is VectorMode.DIRECT else count for count, mode in zip(vectors, modes, strict=True)]
