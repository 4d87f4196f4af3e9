# SPDX-License-Identifier: MIT
"""Limits and fixed numbers, each with the clause that rests on it."""

from typing import NamedTuple

MAJOR = 1
MINOR = 0

SLOT_SIZE = 64
RING_SLOTS_MIN = 16
RING_SLOTS_MAX = 65536
ANNOUNCE_OPS = 64
ANNOUNCE_POLLS = 16
PACK_WRITES = 5
PACK_READS = 10
BLOCK_MAX = 4096
PAGE_SIZE = 4096
REGIONS_MAX_SIZE = 4 << 20
MAX_DEVICES = 16
MAX_VECTORS = 2048
MAX_DMA_WINDOWS = 64
MAX_GRANTS = 64
MAX_MEMORIES = 8
MAX_FDS = 64
MAX_LATE = 8
BAR_COUNT = 6
NAME_MAX = 67
HELLO_MAX = 4096
HELLO_TIMEOUT_MS = 1000
REPLY_MAX = 65536
REPLY_TEXT_MAX = 1024
NO_FD = 0xFFFF
AS_MANY = 0xFFFF
DMA_ALL = 0xFFFFFFFFFFFFFFFF

F2B_MAGIC = 0x31423246  #: "F2B1"
B2F_MAGIC = 0x31463242  #: "B2F1"
HELLO_MAGIC = 0x48534350  #: "PCSH"
REPLY_MAGIC = 0x52534350  #: "PCSR"
BOOT_MAGIC = 0x42534350  #: "PCSB"
LATE_MAGIC = 0x4C534350  #: "PCSL"


class Limit(NamedTuple):
    clause: str
    text: str


#: What each number above is, and the clause that rests on it.
LIMITS = {
    "MAJOR": Limit("VER-1", "major version"),
    "MINOR": Limit("VER-2", "minor version"),
    "SLOT_SIZE": Limit("RING-1", "octets of a slot"),
    "RING_SLOTS_MIN": Limit("RING-1", "fewest slots of a ring"),
    "RING_SLOTS_MAX": Limit("RING-1", "most slots of a ring"),
    "ANNOUNCE_OPS": Limit("RING-15", "operations after which a producer announces"),
    "ANNOUNCE_POLLS": Limit("RING-15", "empty polls after which a producer announces"),
    "PACK_WRITES": Limit("BAR-41", "writes in one slot"),
    "PACK_READS": Limit("BAR-41", "reads in one slot"),
    "BLOCK_MAX": Limit("BAR-20", "octets of a block"),
    "PAGE_SIZE": Limit("REG-1", "octets of a page"),
    "REGIONS_MAX_SIZE": Limit("REG-1", "octets of f2b and b2f together"),
    "MAX_DEVICES": Limit("MEET-5", "devices of a session"),
    "MAX_VECTORS": Limit("IRQ-1", "vectors of a device"),
    "MAX_DMA_WINDOWS": Limit("DMA-7", "DMA windows of a session"),
    "MAX_GRANTS": Limit("MEET-24", "grants of a session"),
    "MAX_MEMORIES": Limit("MEET-24", "memories that a front brings"),
    "MAX_FDS": Limit("MEET-12", "descriptors of one message"),
    "MAX_LATE": Limit("MEET-25", "late messages not yet acknowledged"),
    "BAR_COUNT": Limit("BAR-2", "BARs of a device"),
    "NAME_MAX": Limit("MEET-4", "characters of a device name"),
    "HELLO_MAX": Limit("MEET-4", "octets of a hello"),
    "HELLO_TIMEOUT_MS": Limit("MEET-3", "milliseconds for a hello to come"),
    "REPLY_MAX": Limit("MEET-26", "octets of a reply"),
    "REPLY_TEXT_MAX": Limit("MEET-9", "octets of a refusal's sentence"),
    "NO_FD": Limit("BOOT-7", "no descriptor"),
    "AS_MANY": Limit("MEET-20", "vectors: as many as the device has"),
    "DMA_ALL": Limit("MEET-18", "DMA memory: as much as the back gives"),
    "F2B_MAGIC": Limit("REG-5", "F2B1"),
    "B2F_MAGIC": Limit("REG-5", "B2F1"),
    "HELLO_MAGIC": Limit("MEET-4", "PCSH"),
    "REPLY_MAGIC": Limit("MEET-9", "PCSR"),
    "BOOT_MAGIC": Limit("BOOT-4", "PCSB"),
    "LATE_MAGIC": Limit("MEET-25", "PCSL"),
}
