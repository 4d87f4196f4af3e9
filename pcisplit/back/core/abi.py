# SPDX-License-Identifier: MIT
"""What Python and C of this back agree on in private, declared once: ``pcs_abi.gen.h`` is generated from here."""

import enum


class CoreArea(enum.IntEnum):
    """How the serve loop reaches a part of a BAR."""

    NONE = 0
    MAPPED = 1
    OWNER = 2
    DENIED = 3


class Table(enum.IntEnum):
    """Tables of configuration space that Python fills in, octet by octet."""

    VALUE = 0
    HARDWARE = 1
    VIRTUAL = 2
    THROUGH = 3
    CLEAR = 4
    IGNORE = 5
    ZERO = 6
    TRAP = 7
    RULE = 8


class Wake(enum.IntEnum):
    """What an owner is woken for; TIMEOUT is nothing of it. Bit 1 << n of its word says that n is there."""

    TIMEOUT = 0
    REQUEST = 1
    MESSAGE = 2
    EVENT = 3
    STOPPED = 4


class Run(enum.IntEnum):
    """Why the serve loop came back."""

    STOPPED = 0
    FRONT_STATE = 1
    ENDED = 2


#: Where things are in the two regions, octets, and how many slots the rings have; ``struct pcs_places``, u64 each.
PLACES = (
    "requests",
    "request_slots",
    "responses",
    "response_slots",
    "events",
    "event_slots",
    "bulk_in",
    "bulk_out",
    "bulk_size",
)

#: Where the vectors of a device are in b2f, octets; ``struct pcs_run``, u64 each.
RUN = ("counters", "totals", "pending", "masks")

#: Enumerations that become ``PCS_<PREFIX>_<NAME>`` in C.
ENUMS = {"AREA": CoreArea, "TABLE": Table, "WAKE": Wake, "RUN": Run}
