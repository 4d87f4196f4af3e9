# SPDX-License-Identifier: MIT
"""Numbers that cross the wire: features, operations, errors, states, kinds, flags."""

import enum


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
    PACKED = 1 << 13  #: several accesses in one slot
    LATE = 1 << 14  #: descriptors given after the meeting
    FRONT_MEMORY = 1 << 15  #: DMA memory that the front brings
    RESTART = 1 << 16  #: a session that outlives its back


BUILT = Feature.BLOCK | Feature.EVENTS | Feature.MSI_RELAYED | Feature.MSI_DIRECT | Feature.RESET | Feature.PACKED


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
    BAR_WRITES = 0x25
    BAR_READS = 0x26
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
    LATE_ACK = 0x43  # meeting.md


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
    LATE = 7


class UpcallKind(enum.IntEnum):
    """What the back asks of the front in a device state, until it is answered or its deadline is over [LIFE-32]."""

    NONE = 0
    REVOKE = 1
    EJECT = 2
    AER = 3


class RequestFlag(enum.IntFlag):
    POSTED = 1 << 0  #: writes only: no response [BAR-10]


class RecordKind(enum.IntEnum):
    """Kinds of record in the boot-info block; a reader skips kinds it does not know [BOOT-3]."""

    REGION = 1
    RING = 2
    BULK = 3
    DOORBELL = 4
    DEVICE = 5
    BAR = 6
    DMA_WINDOW = 7
    VECTORS = 8
    GRANT = 9
    SHADOW = 10


class HelloKind(enum.IntEnum):
    """Kinds of record in a hello; a back skips kinds it does not know [MEET-24]."""

    DEVICE = 1
    GRANT = 2
    MEMORY = 3


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


class GrantKind(enum.IntEnum):
    """Ways to map a range of a BAR directly [BAR-30]."""

    MEMFD = 1
    TENDER = 2
    LAUNCHED = 3
    DOORBELL = 4
    DMABUF = 5


class GrantFlag(enum.IntFlag):
    REQUIRED = 1 << 0  #: of a hello: no session without it


class PowerState(enum.IntEnum):
    """States of PCI power management [LIFE-33]."""

    D0 = 0
    D1 = 1
    D2 = 2
    D3HOT = 3
