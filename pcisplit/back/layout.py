# SPDX-License-Identifier: MIT
"""Where things are in the two regions of a session, as this back lays them out. Fronts learn it from the boot-info block."""

from pcisplit import wire

PAGE = wire.PAGE_SIZE
REQUESTS, RESPONSES = PAGE, PAGE
BULK_IN = REQUESTS + wire.REQUEST_SLOTS * wire.SLOT_SIZE
EVENTS = RESPONSES + wire.RESPONSE_SLOTS * wire.SLOT_SIZE
STATES = EVENTS + wire.EVENT_SLOTS * wire.SLOT_SIZE
STATE_STEP = 1024
BULK_OUT = STATES + wire.MAX_DEVICES * STATE_STEP
F2B_SIZE = BULK_IN + wire.BULK_SIZE
B2F_SIZE = BULK_OUT + wire.BULK_SIZE
#: In the order of ``pcs_serve_new``.
OFFSETS = (REQUESTS, RESPONSES, EVENTS, BULK_IN, BULK_OUT)

#: Places of descriptors in the reply: f2b, b2f, kick, rung; DMA memory if there is any; then direct vectors.
FD_F2B, FD_B2F, FD_KICK, FD_RUNG, FD_DMA = range(5)


def state_offset(device: int) -> int:
    """Where the state of a device is in b2f."""
    return STATES + device * STATE_STEP


#: Of the interrupt counters within a device's state.
COUNTERS = wire.DEVICE_STATE.sizeof() - 8 * wire.MAX_VECTORS
