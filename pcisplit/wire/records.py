# SPDX-License-Identifier: MIT
"""Every record that crosses the wire, field by field. Chapters of ``spec/`` that give them their meaning stand beside them."""

from pcisplit.wire.limits import NAME_MAX, PACK_READS, PACK_WRITES
from pcisplit.wire.numbers import HelloKind, RecordKind
from pcisplit.wire.record import Record, octets, pad, s16, s32, u8, u16, u32, u64, zeros

# --- region.md: slots of the rings, 64 octets: a head of 16, a body of 44, the sequence

_SEQUENCE = u32("sequence", "index of the slot in the ring's life + 1; stored last")

_REQUEST_HEAD = (
    u16("op", "operation code"),
    u16("flags", "bit 0: posted"),
    u32("id", "chosen by the front, echoed in the response"),
    u16("device", "device index from the boot-info block"),
    u8("region", "BAR number of a BAR operation, number of the memory of a DMA operation, else 0"),
    u8("width", "octets of one access: 1, 2, 4 or 8"),
    u32("generation", "the device's generation as the front knows it"),
)

REQUEST = Record(
    "request",
    *_REQUEST_HEAD,
    u64("offset", "octets from the start of configuration space or BAR"),
    u64("value", "value to write"),
    u32("length", "octets of a block"),
    u32("bulk", "where the block starts in the bulk area, octets"),
    zeros(20),
    _SEQUENCE,
)
REQUEST_WRITES = Record(
    "request_writes",
    *_REQUEST_HEAD,
    u32("element", "pairs of offset and value, in the order of the writes", 2 * PACK_WRITES),
    u32("count", "number of pairs, 1 to 5"),
    _SEQUENCE,
)
REQUEST_READS = Record(
    "request_reads",
    *_REQUEST_HEAD,
    u32("element", "offsets, in the order of the reads", PACK_READS),
    u32("count", "number of offsets, 1 to 10"),
    _SEQUENCE,
)
REQUEST_IRQ = Record(
    "request_irq",
    *_REQUEST_HEAD,
    u16("type", "mask and unmask: type of the vectors; else 0, the operation says it"),
    u16("irq_flags", "zero in 1.0"),
    u32("first", "first vector"),
    u32("count", "number of vectors"),
    zeros(32),
    _SEQUENCE,
)
REQUEST_DMA = Record(
    "request_dma",
    *_REQUEST_HEAD,
    u64("iova", "address for the devices; all ones: the back chooses"),
    u64("offset", "in the memory, octets"),
    u64("size", "octets"),
    u32("dma_flags", "zero in 1.0"),
    zeros(16),
    _SEQUENCE,
)
REQUEST_GRANT = Record("request_grant", *_REQUEST_HEAD, u32("grant", "id of the grant"), zeros(40), _SEQUENCE)
REQUEST_POWER = Record("request_power", *_REQUEST_HEAD, u32("power", "power state"), zeros(40), _SEQUENCE)
REQUEST_ANSWER = Record(
    "request_answer",
    *_REQUEST_HEAD,
    u32("event", "id of the upcall, or serial of the late message"),
    s32("result", "0, or an error code"),
    zeros(36),
    _SEQUENCE,
)

_RESPONSE_HEAD = (
    u16("op", "operation code of the request"),
    s16("error", "0 or an error code"),
    u32("id", "id of the request"),
    u16("device", "device index of the request"),
    u16("rule", "rule that refused the access, 0 if none did"),
    u32("generation", "the device's when the request was executed, 0 without a device; of a reset: the new one"),
)

RESPONSE = Record(
    "response",
    *_RESPONSE_HEAD,
    u64("value", "by operation; what was read is zero-extended"),
    u64("detail", "denied configuration write: offset of the first offending octet; else 0"),
    u32("length", "octets moved by a block"),
    zeros(24),
    _SEQUENCE,
)
RESPONSE_VALUES = Record(
    "response_values",
    *_RESPONSE_HEAD,
    u32("values", "what was read, in the order of the reads; from `done` on zero", PACK_READS),
    u32("done", "reads that were made; with an error, the one that met it"),
    _SEQUENCE,
)

EVENT = Record(
    "event",
    u16("kind", "event kind"),
    u16("event_flags", "zero in 1.0"),
    u32("id", "id of the upcall that the event tells of, else 0"),
    u16("device", "device index"),
    u16("vector", "interrupt: vector"),
    u32("generation", "the device's generation when the event was written"),
    u64("value", "interrupt: counter; posted error: error code, sign-extended; device state: the state"),
    zeros(36),
    _SEQUENCE,
)

# --- region.md: headers of the two regions. A line is 64 octets and has one writer.
FRONT_HEADER = Record(
    "front_header",
    u32("magic", "0x31423246, written by the back before the front sees it"),
    u32("state", "the front's state"),
    u64("features", "features the front uses; for information, the back ignores it"),
    u32("epoch", "1, one more for each restart of the back; written by the back before the front sees it"),
    pad(44, "line0"),
    u32("req_prod", "requests announced"),
    pad(60, "line1"),
    u32("rsp_cons", "responses taken"),
    u32("evt_cons", "events taken"),
    pad(56, "line2"),
    u32("sleeping", "1: the front waits for its doorbell"),
    pad(60, "line3"),
)

BACK_HEADER = Record(
    "back_header",
    u32("magic", "0x31463242"),
    u32("state", "the back's state"),
    s32("reason", "error code that ended the session, 0 while it lives"),
    u32("devices", "number of devices in this session"),
    u64("session", "session number, for logs"),
    u32("epoch", "as in f2b"),
    pad(36, "line0"),
    u32("req_cons", "requests taken"),
    pad(60, "line1"),
    u32("rsp_prod", "responses announced"),
    pad(60, "line2"),
    u32("evt_prod", "events announced"),
    pad(60, "line3"),
    u32("sleeping", "1: the back waits for its doorbell"),
    pad(60, "line4"),
    u64("requests", "requests taken"),
    u64("responses", "responses published"),
    u64("refused", "requests that failed, posted ones included; of a pack each write"),
    u64("stale", "requests of an old generation"),
    u64("kicks", "kicks sent to the front"),
    u64("empty_kicks", "kicks received with no work behind them"),
    u64("events_dropped", "hints not written because the event ring was full"),
    pad(8, "line5"),
)

DEVICE_STATE = Record(
    "device_state",
    u32("state", "device state"),
    u32("generation", "bumped by reset and re-attach"),
    u32("upcall", "id of what the back asks of the front; 0: nothing"),
    u16("upcall_kind", "kind of it"),
    u16("upcall_flags", "zero in 1.0"),
    u32("upcall_argument", "revoke: id of the grant; AER: the operation to answer with"),
    u32("upcall_deadline", "milliseconds from when it was written that the front has"),
    u64("posted_errors", "posted writes that failed"),
    u64("posted_offset", "offset of the last of them"),
    s16("posted_error", "error code of the last of them"),
    u16("posted_rule", "rule of the last of them, 0 if none"),
    u8("posted_region", "BAR of the last of them"),
    zeros(3),
    u64("refused", "requests of this device that failed, posted ones included"),
    pad(8, "line0"),
)

# --- meeting.md: a hello is a header, then records that begin with kind and length

HELLO = Record(
    "hello",
    u32("magic", "0x48534350"),
    u16("major", "protocol version"),
    u16("minor", "protocol version"),
    u32("length", "octets of this message, records included"),
    u16("records", "number of records; without a device record it asks for every device served to this peer"),
    u8("dma_bits", "address bits the driver can use for DMA, 12..64"),
    zeros(1, "zero"),
    u64("features", "feature bits the front can use"),
    u64("required", "feature bits it cannot do without, a subset of features"),
    u64("dma_bytes", "DMA memory it needs, octets; 0 for none, all ones for as much as the back gives"),
    octets("driver", NAME_MAX + 1, "name of the driver, padded with NUL"),
    zeros(20),
)

_HELLO_HEAD = (u16("kind", "record kind"), u16("length", "octets of this record"))

HELLO_DEVICE = Record(
    "hello_device",
    *_HELLO_HEAD,
    octets("name", NAME_MAX + 1, "device name, [A-Za-z0-9]{1,67}, padded with NUL"),
    u16("intx", "1: it needs INTx"),
    u16("msi", "MSI vectors it needs; 0xffff for as many as the device has"),
    u16("msix", "MSI-X vectors it needs; 0xffff for as many as the device has"),
    u16("mode", "vector mode: 0 relayed, 1 direct"),
    zeros(16),
)

HELLO_GRANT = Record(
    "hello_grant",
    *_HELLO_HEAD,
    u16("device", "position of the device among the device records"),
    u8("bar", "BAR number"),
    u8("grant_flags", "bit 0: no session without it"),
    u64("offset", "in the BAR, octets, a multiple of a page"),
    u64("value", "doorbell: the value that it writes; else 0"),
    u32("pages", "pages of the range; doorbell: 0"),
    u8("grant_kind", "kind of grant"),
    u8("width", "doorbell: octets of the write; else 0"),
    zeros(2),
)

HELLO_MEMORY = Record(
    "hello_memory",
    *_HELLO_HEAD,
    u16("fd", "place among the descriptors of this message"),
    u16("memory_flags", "zero in 1.0"),
    u64("offset", "in the memory, octets"),
    u64("size", "octets"),
    u64("iova", "address for the devices; all ones: the back chooses"),
)

REPLY = Record(
    "reply",
    u32("magic", "0x52534350"),
    u16("major", "version of the back"),
    u16("minor", "the lower of the two minors"),
    u32("length", "octets of this message, text and boot-info included"),
    s16("error", "0 or why there is no session"),
    u16("fds", "descriptors in this message"),
    u32("text_length", "octets of the refusal's sentence, UTF-8; 0 with a session"),
    u32("boot_length", "octets of the boot-info block; 0 without a session"),
    zeros(8),
)

LATE = Record(
    "late",
    u32("magic", "0x4c534350"),
    u32("length", "octets of this message, the boot-info record included"),
    u16("kind", "kind of the boot-info record that follows"),
    u16("index", "index of that record"),
    u16("device", "device index, or 0"),
    u16("fds", "descriptors in this message"),
    u32("generation", "the device's generation"),
    u32("serial", "1, one more for each late message of the session"),
    zeros(8),
)

# --- boot-info.md: a header, then records that begin with kind and length

BOOT_INFO = Record(
    "boot_info",
    u32("magic", "0x42534350"),
    u16("major", "protocol version"),
    u16("minor", "protocol version, negotiated"),
    u32("length", "octets of the block, header included"),
    u32("records", "number of records"),
    u64("features", "feature bits in force"),
    u64("session", "session number, for logs"),
    u32("epoch", "as in the headers of the regions"),
    zeros(28),
)

_BOOT_HEAD = (
    u16("kind", "record kind"),
    u16("length", "octets of this record, a multiple of 8"),
    u16("index", "index within its kind"),
    u16("device", "device index, or 0"),
)

BOOT_REGION = Record(
    "boot_region",
    *_BOOT_HEAD,
    u16("fd", "place among the descriptors of the reply"),
    u16("writable", "1: the front may map it for writing"),
    zeros(4),
    u64("size", "octets"),
    u64("address", "0 from the back; a tender writes the guest address here"),
)

BOOT_RING = Record(
    "boot_ring",
    *_BOOT_HEAD,
    u16("region", "region that holds the slots"),
    zeros(2),
    u32("slots", "number of slots, a power of two"),
    u64("offset", "of slot 0 in the region, octets"),
)

BOOT_BULK = Record(
    "boot_bulk",
    *_BOOT_HEAD,
    u16("region", "region that holds the area"),
    zeros(6),
    u64("offset", "octets"),
    u64("size", "octets"),
)

BOOT_DOORBELL = Record(
    "boot_doorbell",
    *_BOOT_HEAD,
    u16("fd", "place among the descriptors of the reply"),
    u16("type", "1 eventfd, 2 stream socket"),
    zeros(4),
    u64("address", "0 from the back; a tender may write the guest address of a doorbell here"),
)

BOOT_DEVICE = Record(
    "boot_device",
    *_BOOT_HEAD,
    u32("state_offset", "of its device state in b2f, octets"),
    u32("generation", "at the meeting"),
    u16("vendor", "vendor id"),
    u16("device_id", "device id"),
    u32("class_code", "class, subclass, programming interface: 24 bits"),
    u16("device_flags", "bit 0: can be reset"),
    zeros(2),
    u32("config_size", "octets of configuration space: 256 or 4096"),
    octets("name", NAME_MAX + 1, "device name, padded with NUL"),
    zeros(4, "reserved2"),
)

BOOT_BAR = Record(
    "boot_bar",
    *_BOOT_HEAD,
    u16("bar_flags", "bit 0 I/O, bit 1 64-bit, bit 2 prefetchable"),
    zeros(6),
    u64("size", "octets"),
    u64("address", "virtual address in the BAR register; not a host address"),
)

BOOT_DMA_WINDOW = Record(
    "boot_dma_window",
    *_BOOT_HEAD,
    u16("region", "region that holds the memory"),
    zeros(6),
    u64("offset", "in the region, octets"),
    u64("size", "octets"),
    u64("iova", "address for the devices"),
)

BOOT_VECTORS = Record(
    "boot_vectors",
    *_BOOT_HEAD,
    u16("type", "0 INTx, 1 MSI, 2 MSI-X"),
    u16("mode", "0 relayed, 1 direct"),
    u16("fd", "direct: place of the first vector's eventfd, the others follow; else 0xffff"),
    zeros(2),
    u32("first", "first vector of the run"),
    u32("count", "vectors of the run"),
    u64("counters", "in b2f: a u64 per vector, interrupts relayed so far"),
    u64("totals", "in b2f: a u64 per 64 vectors, the sum of their counters"),
    u64("pending", "in b2f: a bit per vector, fired while masked"),
    u64("masks", "in b2f: a bit per vector, masked"),
)

BOOT_GRANT = Record(
    "boot_grant",
    *_BOOT_HEAD,
    u32("grant", "id of the grant"),
    u8("bar", "BAR number"),
    u8("grant_kind", "kind of grant"),
    u16("fd", "place among the descriptors; 0xffff: the one of the grant's last time"),
    u16("grant_flags", "zero in 1.0"),
    u8("width", "doorbell: octets of the write"),
    zeros(1),
    u32("state_offset", "of the grant's state word in b2f, octets"),
    u64("offset", "in the BAR, octets"),
    u64("size", "octets"),
    u64("fd_offset", "what to map of the descriptor, octets"),
    u64("address", "0 from the back; a tender writes the guest address here"),
    u64("value", "doorbell: the value that it writes"),
)

BOOT_SHADOW = Record(
    "boot_shadow",
    *_BOOT_HEAD,
    u16("region", "region that holds the copy of the device's configuration space"),
    zeros(6),
    u64("offset", "octets"),
    u64("size", "octets"),
)

#: Every record, by the name it has in C (``struct pcisplit_<name>``) and in the tables of the specification.
RECORDS = {value.name: value for value in list(globals().values()) if isinstance(value, Record)}

#: Of the boot-info block and of a hello, by kind.
BOOT_RECORDS = {kind: RECORDS[f"boot_{kind.name.lower()}"] for kind in RecordKind}
HELLO_RECORDS = {kind: RECORDS[f"hello_{kind.name.lower()}"] for kind in HelloKind}
