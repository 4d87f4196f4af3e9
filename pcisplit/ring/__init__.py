# SPDX-License-Identifier: MIT
"""Shared memory, rings, doorbells, register accessors: what both sides stand on. The operations are in C headers."""

from pcisplit.ring.doorbell import Doorbells
from pcisplit.ring.region import check_seals, create_region
from pcisplit.ring.words import Words, mmio_read, mmio_write

__all__ = ["Doorbells", "Words", "check_seals", "create_region", "mmio_read", "mmio_write"]
