# SPDX-License-Identifier: MIT
"""The wire: every number, record and layout that two peers share, declared once.

Rules of this file: declarations only, no logic; it imports nothing of pcisplit, so that a tool can read it alone.
From it ``python -m pcisplit.gen`` writes the C header, the octet tables of the specification and the golden vectors.
All numbers are little-endian. Every record is a multiple of 8 octets, and reserved octets are zero [REG-4].

``construct`` describes here and never runs per operation: parsing one slot with it costs 9-11 us (DESIGN section 2).
Chapters of ``spec/`` that give the records their meaning are named beside them.
"""

import enum
import functools
from collections.abc import Mapping

from construct import Bytes, Const, ConstructError, Int8ul, Int16sl, Int16ul, Int32sl, Int32ul, Int64ul, Padding, Struct

#: What parsing a record raises; named here so that construct stays confined to this file.
ParseError = ConstructError

# --- versioning.md -------------------------------------------------------------------------------------------

MAJOR = 1
MINOR = 0


class Feature(enum.IntFlag):
    """Feature bits, offered in Hello and fixed by its answer [MEET-6]. A bit that is not built is not in BUILT."""

    BLOCK = 1 << 0  #: block transfers through the bulk areas
    EVENTS = 1 << 1  #: hints on the event ring
    MSI_RELAYED = 1 << 2  #: MSI as a counter in b2f and a kick
    MSI_DIRECT = 1 << 3  #: MSI on an eventfd of the front's own, for a trusted tender
    MSIX = 1 << 4  #: MSI-X
    INTX = 1 << 5  #: INTx
    RESET = 1 << 6  #: the reset operation
    GRANTS = 1 << 7  #: direct mapping of BAR ranges
    DMA_WINDOWS = 1 << 8  #: DMA windows made at run time
    SHADOW_CONFIG = 1 << 9  #: configuration space readable in b2f
    POWER = 1 << 10  #: power states
    AER = 1 << 11  #: PCI error recovery steps
    HOTPLUG = 1 << 12  #: devices that come and go within a session


BUILT = Feature.BLOCK | Feature.EVENTS | Feature.MSI_RELAYED | Feature.MSI_DIRECT | Feature.RESET

# --- limits: one table; the rules behind them are in meeting.md, region.md, dma.md ---------------------------

SLOT_SIZE = 64
REQUEST_SLOTS = 256
RESPONSE_SLOTS = 256
EVENT_SLOTS = 64
BULK_SIZE = 65536
BLOCK_MAX = 4096
PAGE_SIZE = 4096
REGIONS_MAX_SIZE = 2 << 20
MAX_DEVICES = 16
MAX_VECTORS = 64
MAX_DMA_WINDOWS = 64
MAX_FDS = 64
BAR_COUNT = 6
NAME_MAX = 67
HELLO_MAX = 4096
HELLO_TIMEOUT_MS = 1000
BOOT_RECORD_SIZE = 128
REPLY_TEXT_MAX = 1024
NO_FD = 0xFFFF
ALL_VECTORS = 0xFFFF
DMA_ALL = 0xFFFFFFFFFFFFFFFF


class Op(enum.IntEnum):
    """Operation codes. 0-10 are Xen's (xen/io/pciif.h); 0x20 and up are ours. Chapter of the semantics beside each."""

    CONF_READ = 0  # config.md
    CONF_WRITE = 1
    ENABLE_MSI = 2  # interrupts.md
    DISABLE_MSI = 3
    ENABLE_MSIX = 4
    DISABLE_MSIX = 5
    AER_DETECTED = 6  # lifecycle.md
    AER_RESUME = 7
    AER_MMIO = 8
    AER_SLOTRESET = 9
    ENABLE_MULTI_MSI = 10
    NOP = 0x20  # region.md
    BAR_READ = 0x21  # bar.md
    BAR_WRITE = 0x22
    BAR_READ_BLOCK = 0x23
    BAR_WRITE_BLOCK = 0x24
    ENABLE_INTX = 0x28  # interrupts.md
    DISABLE_INTX = 0x29
    MASK_VECTOR = 0x2A
    UNMASK_VECTOR = 0x2B
    DMA_MAP = 0x30  # dma.md
    DMA_UNMAP = 0x31
    GRANT_MAP = 0x38  # bar.md
    GRANT_RELEASE = 0x39
    RESET = 0x40  # lifecycle.md
    SET_POWER = 0x41
    EJECT_ACK = 0x42


class Uses(enum.IntFlag):
    """Fields of a request that an operation uses; the others are zero [REG-4]."""

    REGION = 1 << 0
    WIDTH = 1 << 1  #: 1, 2 or 4
    WIDTH8 = 1 << 2  #: 8 too
    OFFSET = 1 << 3
    VALUE = 1 << 4
    BLOCK = 1 << 5  #: length and bulk
    VECTORS = 1 << 6  #: vector and count
    POSTED = 1 << 7  #: the posted flag


_BAR = Uses.REGION | Uses.WIDTH | Uses.WIDTH8 | Uses.OFFSET

#: The operations that are built, and the fields each uses; every other is answered `not_implemented` [VER-5].
USES = {
    Op.CONF_READ: Uses.WIDTH | Uses.OFFSET,
    Op.CONF_WRITE: Uses.WIDTH | Uses.OFFSET | Uses.VALUE,
    Op.ENABLE_MSI: Uses.VECTORS,
    Op.DISABLE_MSI: Uses.VECTORS,
    Op.NOP: Uses(0),
    Op.BAR_READ: _BAR,
    Op.BAR_WRITE: _BAR | Uses.VALUE | Uses.POSTED,
    Op.BAR_READ_BLOCK: _BAR | Uses.BLOCK,
    Op.BAR_WRITE_BLOCK: _BAR | Uses.BLOCK,
    Op.RESET: Uses(0),
}


#: Which use lets a field of a request be other than zero; fields that are not here are free.
USED_BY = {
    "region": Uses.REGION,
    "width": Uses.WIDTH,
    "offset": Uses.OFFSET,
    "value": Uses.VALUE,
    "length": Uses.BLOCK,
    "bulk": Uses.BLOCK,
    "vector": Uses.VECTORS,
    "count": Uses.VECTORS,
}


class Error(enum.IntEnum):
    """Error codes, s16. 0..-5 are Xen's; from -32 ours. Sentences and retry advice: ``errors.ERRORS`` and errors.md."""

    SUCCESS = 0
    DEV_NOT_FOUND = -1
    INVALID_OFFSET = -2
    ACCESS_DENIED = -3
    NOT_IMPLEMENTED = -4
    OP_FAILED = -5
    TIMEOUT = -32
    UNALIGNED = -33
    BAD_SIZE = -34
    DENIED = -35
    DECODE_DISABLED = -36
    RESETTING = -37
    STALE = -38
    BUSY = -39
    GONE = -40
    QUOTA = -41
    BAD_REQUEST = -42
    FAULTED = -43
    NO_RESET = -44
    RING_OVERRUN = -45
    MALFORMED_HELLO = -48
    WRONG_VERSION = -49
    UNKNOWN_FEATURE = -50
    UNKNOWN_DEVICE = -51
    DEVICE_TAKEN = -52
    DMA_TOO_LARGE = -53
    DMA_UNREACHABLE = -54
    TOO_MANY_VECTORS = -55
    QUARANTINED = -56
    TOO_MANY_SESSIONS = -57
    DEVICE_FAILED = -58


class State(enum.IntEnum):
    """XenbusState (xen/io/xenbus.h), the life of one side [LIFE-1]. Transitions: ``states.TRANSITIONS``."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


class DeviceState(enum.IntEnum):
    """Life of one device within a session, written by the back in its device state [LIFE-20]."""

    ABSENT = 0
    ACQUIRED = 1
    RESETTING = 2
    GONE = 3


class EventKind(enum.IntEnum):
    """Kinds of event. An event is a hint: the truth is in the device state of b2f [REG-30]."""

    INTERRUPT = 1
    DEVICE_STATE = 2
    POSTED_ERROR = 3
    REVOKE = 4
    EJECT = 5
    AER = 6


class RequestFlag(enum.IntFlag):
    POSTED = 1 << 0  #: BAR_WRITE only: no response [BAR-10]


class RecordKind(enum.IntEnum):
    """Kinds of record in the boot-info block; a reader skips kinds it does not know [BOOT-3]."""

    REGION = 1
    RING = 2
    BULK = 3
    DOORBELL = 4
    DEVICE = 5
    BAR = 6
    DMA_WINDOW = 7
    VECTOR = 8


class RegionIndex(enum.IntEnum):
    F2B = 0
    B2F = 1
    DMA = 2


class RingIndex(enum.IntEnum):
    REQUEST = 0
    RESPONSE = 1
    EVENT = 2


class Direction(enum.IntEnum):
    FRONT_TO_BACK = 0
    BACK_TO_FRONT = 1


class DoorbellType(enum.IntEnum):
    EVENTFD = 1
    SOCKET = 2


class BarFlag(enum.IntFlag):
    IO = 1 << 0
    MEM64 = 1 << 1
    PREFETCHABLE = 1 << 2


class ResetMethod(enum.IntEnum):
    """`value` of the answer to a reset [LIFE-21, LIFE-26]: the methods of Linux by its names, and a model's own."""

    MODEL = 1  #: a model's own
    FLR = 2  #: function level reset of PCI Express
    AF = 3  #: function level reset of Advanced Features
    PM = 4  #: from D3hot to D0; some devices keep what they had
    BUS = 5  #: reset of a bus or slot with no other session's device on it
    DEVICE_SPECIFIC = 6  #: the host kernel's own for this device
    ACPI = 7  #: the firmware's


class DeviceFlag(enum.IntFlag):
    RESETTABLE = 1 << 0


class VectorType(enum.IntEnum):
    INTX = 0
    MSI = 1
    MSIX = 2


class VectorMode(enum.IntEnum):
    RELAYED = 0
    DIRECT = 1


# --- region.md: slots of the rings --------------------------------------------------------------------------

REQUEST = Struct(
    "op" / Int16ul * "operation code",
    "flags" / Int16ul * "bit 0: posted",
    "id" / Int32ul * "chosen by the front, echoed in the response",
    "device" / Int16ul * "device index from the boot-info block",
    "region" / Int8ul * "BAR number of a BAR operation, else 0",
    "width" / Int8ul * "octets of one access: 1, 2, 4 or 8",
    "generation" / Int32ul * "the device's generation as the front knows it",
    "offset" / Int64ul * "octets from the start of configuration space or BAR",
    "value" / Int64ul * "value to write",
    "length" / Int32ul * "octets of a block transfer",
    "bulk" / Int32ul * "where the block starts in the bulk area, octets",
    "vector" / Int32ul * "first vector of an interrupt operation",
    "count" / Int32ul * "vectors of an interrupt operation",
    "reserved" / Const(bytes(16)),
)

RESPONSE = Struct(
    "op" / Int16ul * "operation code of the request",
    "error" / Int16sl * "0 or an error code",
    "id" / Int32ul * "id of the request",
    "device" / Int16ul * "device index of the request",
    "rule" / Int16ul * "rule that refused the access, 0 if none did",
    "generation" / Int32ul * "the device's generation when the request was executed; of a reset: the new one",
    "value" / Int64ul * "value read; method of a reset",
    "detail" / Int64ul * "denied configuration write: offset of the first offending octet; else 0",
    "length" / Int32ul * "octets moved by a block transfer",
    "reserved" / Const(bytes(28)),
)

EVENT = Struct(
    "kind" / Int16ul * "event kind",
    "flags" / Int16ul * "zero",
    "id" / Int32ul * "event id, echoed by the request that answers it; 0 if no answer is wanted",
    "device" / Int16ul * "device index",
    "vector" / Int16ul * "interrupt: vector",
    "generation" / Int32ul * "the device's generation when the event was written",
    "value" / Int64ul * "interrupt: counter; posted error: error code, sign-extended; device state: the state",
    "reserved" / Const(bytes(40)),
)

# --- region.md: headers of the two regions. A line is 64 octets and has one writer. --------------------------

F2B_MAGIC = 0x31423246  # "F2B1"
B2F_MAGIC = 0x31463242  # "B2F1"

FRONT_HEADER = Struct(
    "magic" / Int32ul * "0x31423246, written by the back before the front sees it",
    "state" / Int32ul * "the front's state",
    "features" / Int64ul * "features the front uses; for information, the back ignores it",
    "line0" / Padding(48),
    "req_prod" / Int32ul * "requests published",
    "line1" / Padding(60),
    "rsp_cons" / Int32ul * "responses taken",
    "evt_cons" / Int32ul * "events taken",
    "line2" / Padding(56),
    "sleeping" / Int32ul * "1: the front waits for its doorbell",
    "line3" / Padding(60),
)

BACK_HEADER = Struct(
    "magic" / Int32ul * "0x31463242",
    "state" / Int32ul * "the back's state",
    "reason" / Int32sl * "error code that ended the session, 0 while it lives",
    "devices" / Int32ul * "number of devices in this session",
    "session" / Int64ul * "session number, for logs",
    "line0" / Padding(40),
    "req_cons" / Int32ul * "requests taken",
    "line1" / Padding(60),
    "rsp_prod" / Int32ul * "responses published",
    "line2" / Padding(60),
    "evt_prod" / Int32ul * "events published",
    "line3" / Padding(60),
    "sleeping" / Int32ul * "1: the back waits for its doorbell",
    "line4" / Padding(60),
    "requests" / Int64ul * "requests taken",
    "responses" / Int64ul * "responses published",
    "refused" / Int64ul * "requests that failed, posted ones included",
    "stale" / Int64ul * "requests of an old generation",
    "kicks" / Int64ul * "kicks sent to the front",
    "empty_kicks" / Int64ul * "kicks received with no work behind them",
    "events_dropped" / Int64ul * "hints not written because the event ring was full",
    "line5" / Padding(8),
)

DEVICE_STATE = Struct(
    "state" / Int32ul * "device state",
    "generation" / Int32ul * "bumped by reset and re-attach",
    "pending" / Int64ul * "bit n: vector n has fired since the vector was enabled",
    "posted_errors" / Int64ul * "posted writes that failed",
    "last_posted_error" / Int32sl * "error code of the last of them",
    "last_posted_rule" / Int32ul * "rule of the last of them, 0 if none",
    "refused" / Int64ul * "requests of this device that failed, posted ones included",
    "line0" / Padding(24),
    "counters" / Int64ul[MAX_VECTORS] * "interrupts relayed, by vector",
)

# --- meeting.md ----------------------------------------------------------------------------------------------

HELLO_MAGIC = 0x48534350  # "PCSH"
REPLY_MAGIC = 0x52534350  # "PCSR"
BOOT_MAGIC = 0x42534350  # "PCSB"

HELLO = Struct(
    "magic" / Int32ul * "0x48534350",
    "major" / Int16ul * "protocol version",
    "minor" / Int16ul * "protocol version",
    "length" / Int32ul * "octets of this message, device records included",
    "devices" / Int16ul * "number of device records; 0 asks for every device served to this peer",
    "dma_bits" / Int8ul * "address bits the driver can use for DMA, 12..64",
    "zero" / Int8ul * "zero",
    "features" / Int64ul * "feature bits the front can use",
    "required" / Int64ul * "feature bits it cannot do without, a subset of features",
    "dma_bytes" / Int64ul * "DMA memory it needs, octets; 0 for none, all ones for as much as the back gives",
    "driver" / Bytes(NAME_MAX + 1) * "name of the driver, padded with NUL",
    "reserved" / Const(bytes(20)),
)

HELLO_DEVICE = Struct(
    "name" / Bytes(NAME_MAX + 1) * "device name, [A-Za-z0-9]{1,67}, padded with NUL",
    "vectors" / Int16ul * "interrupt vectors it needs; 0xffff for as many as the device has",
    "mode" / Int16ul * "vector mode: 0 relayed, 1 direct",
    "reserved" / Const(bytes(24)),
)

REPLY = Struct(
    "magic" / Int32ul * "0x52534350",
    "major" / Int16ul * "version of the back",
    "minor" / Int16ul * "the lower of the two minors",
    "length" / Int32ul * "octets of this message, text and boot-info included",
    "error" / Int16sl * "0 or why there is no session",
    "fds" / Int16ul * "descriptors in this message",
    "text_length" / Int32ul * "octets of the refusal's sentence, UTF-8; 0 with a session",
    "boot_length" / Int32ul * "octets of the boot-info block; 0 without a session",
    "reserved" / Const(bytes(8)),
)

# --- boot-info.md: one header, then records of 128 octets ----------------------------------------------------

BOOT_INFO = Struct(
    "magic" / Int32ul * "0x42534350",
    "major" / Int16ul * "protocol version",
    "minor" / Int16ul * "protocol version, negotiated",
    "length" / Int32ul * "octets of the block, header included",
    "records" / Int32ul * "number of records",
    "features" / Int64ul * "feature bits in force",
    "session" / Int64ul * "session number, for logs",
    "reserved" / Const(bytes(32)),
)

_RECORD = (
    "kind" / Int16ul * "record kind",
    "length" / Int16ul * "128",
    "index" / Int16ul * "index within its kind",
    "device" / Int16ul * "device index, or 0",
)

BOOT_REGION = Struct(
    *_RECORD,
    "fd" / Int16ul * "place among the descriptors of the answer",
    "writable" / Int16ul * "1: the front may map it for writing",
    "zero" / Int32ul * "zero",
    "size" / Int64ul * "octets",
    "address" / Int64ul * "0 from the back; a tender writes the guest address here",
    "reserved" / Const(bytes(96)),
)

BOOT_RING = Struct(
    *_RECORD,
    "region" / Int16ul * "region that holds the slots",
    "zero" / Int16ul * "zero",
    "slots" / Int32ul * "number of slots, a power of two",
    "offset" / Int64ul * "of slot 0 in the region, octets",
    "reserved" / Const(bytes(104)),
)

BOOT_BULK = Struct(
    *_RECORD,
    "region" / Int16ul * "region that holds the area",
    "zero" / Int16ul[3] * "zero",
    "offset" / Int64ul * "octets",
    "size" / Int64ul * "octets",
    "reserved" / Const(bytes(96)),
)

BOOT_DOORBELL = Struct(
    *_RECORD,
    "fd" / Int16ul * "place among the descriptors of the answer",
    "type" / Int16ul * "1 eventfd, 2 stream socket",
    "zero" / Int32ul * "zero",
    "address" / Int64ul * "0 from the back; a tender may write the guest address of a doorbell here",
    "reserved" / Const(bytes(104)),
)

BOOT_DEVICE = Struct(
    *_RECORD,
    "state_offset" / Int32ul * "of its device state in b2f, octets",
    "generation" / Int32ul * "at the meeting",
    "vendor" / Int16ul * "vendor id",
    "device_id" / Int16ul * "device id",
    "class_code" / Int32ul * "class, subclass, programming interface: 24 bits",
    "flags" / Int16ul * "bit 0: can be reset",
    "vectors" / Int16ul * "vectors it may enable",
    "config_size" / Int32ul * "octets of configuration space: 256 or 4096",
    "name" / Bytes(NAME_MAX + 1) * "device name, padded with NUL",
    "reserved" / Const(bytes(28)),
)

BOOT_BAR = Struct(
    *_RECORD,
    "flags" / Int16ul * "bit 0 I/O, bit 1 64-bit, bit 2 prefetchable",
    "zero" / Int16ul[3] * "zero",
    "size" / Int64ul * "octets",
    "address" / Int64ul * "virtual address in the BAR register; not a host address",
    "reserved" / Const(bytes(96)),
)

BOOT_DMA_WINDOW = Struct(
    *_RECORD,
    "region" / Int16ul * "region that holds the memory",
    "zero" / Int16ul[3] * "zero",
    "offset" / Int64ul * "in the region, octets",
    "size" / Int64ul * "octets",
    "iova" / Int64ul * "address for the devices",
    "reserved" / Const(bytes(88)),
)

BOOT_VECTOR = Struct(
    *_RECORD,
    "type" / Int16ul * "0 INTx, 1 MSI, 2 MSI-X",
    "mode" / Int16ul * "0 relayed, 1 direct",
    "fd" / Int16ul * "direct: place of its eventfd among the descriptors; else 0xffff",
    "zero" / Int16ul * "zero",
    "counter_offset" / Int64ul * "relayed: of its counter in b2f, octets",
    "reserved" / Const(bytes(104)),
)

#: Every record, by the name it has in C (``struct pcisplit_<name>``) and in the tables of the specification.
RECORDS = {
    "request": REQUEST,
    "response": RESPONSE,
    "event": EVENT,
    "front_header": FRONT_HEADER,
    "back_header": BACK_HEADER,
    "device_state": DEVICE_STATE,
    "hello": HELLO,
    "hello_device": HELLO_DEVICE,
    "reply": REPLY,
    "boot_info": BOOT_INFO,
    "boot_region": BOOT_REGION,
    "boot_ring": BOOT_RING,
    "boot_bulk": BOOT_BULK,
    "boot_doorbell": BOOT_DOORBELL,
    "boot_device": BOOT_DEVICE,
    "boot_bar": BOOT_BAR,
    "boot_dma_window": BOOT_DMA_WINDOW,
    "boot_vector": BOOT_VECTOR,
}

#: Record of each kind in the boot-info block.
BOOT_RECORDS = {
    RecordKind.REGION: BOOT_REGION,
    RecordKind.RING: BOOT_RING,
    RecordKind.BULK: BOOT_BULK,
    RecordKind.DOORBELL: BOOT_DOORBELL,
    RecordKind.DEVICE: BOOT_DEVICE,
    RecordKind.BAR: BOOT_BAR,
    RecordKind.DMA_WINDOW: BOOT_DMA_WINDOW,
    RecordKind.VECTOR: BOOT_VECTOR,
}


@functools.cache
def blank(record: Struct) -> Mapping[str, object]:
    """A value of `record` that builds to zeros, magic fields included."""
    return dict(record.parse(bytes(record.sizeof())))


#: Enumerations that become ``PCISPLIT_<PREFIX>_<NAME>`` in C.
ENUMS = {
    "FEATURE": Feature,
    "OP": Op,
    "ERROR": Error,
    "STATE": State,
    "DEVICE": DeviceState,
    "EVENT": EventKind,
    "FLAG": RequestFlag,
    "USES": Uses,
    "RECORD": RecordKind,
    "REGION": RegionIndex,
    "RING": RingIndex,
    "DIRECTION": Direction,
    "DOORBELL": DoorbellType,
    "BAR": BarFlag,
    "DEVFLAG": DeviceFlag,
    "METHOD": ResetMethod,
    "VECTOR": VectorType,
    "MODE": VectorMode,
}

#: Plain constants that become ``PCISPLIT_<NAME>`` in C.
CONSTANTS = {
    name: value
    for name, value in sorted(globals().items())
    if name.isupper() and isinstance(value, int) and not isinstance(value, enum.Enum) and not name.startswith("_")
}
