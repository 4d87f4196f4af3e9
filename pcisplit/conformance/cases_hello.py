# SPDX-License-Identifier: MIT
"""Cases of the hello in ``spec/meeting.md``: its shape, its version, its features."""

from pcisplit import wire
from pcisplit.conformance.case import case, expect
from pcisplit.conformance.meeting import NAME_FIELD, Want, bring_memory, hello, strange, want_grant
from pcisplit.conformance.target import Target
from pcisplit.wire import Error, Feature, VectorMode


@case("MEET-4", "MEET-9", "MEET-15")
def case_hello_magic(target: Target) -> None:
    """A message that does not begin with the magic is no hello."""
    target.refuses(hello(target.want(), magic=wire.HELLO_MAGIC ^ 1), Error.MALFORMED_HELLO, "a wrong magic")
    target.refuses(b"\xff" * 224, Error.MALFORMED_HELLO, "224 octets of ff")


@case("MEET-4")
def case_hello_length(target: Target) -> None:
    """Length field, number of records and the message's own length agree, and are at most 4096."""
    good = hello(target.want())
    for octets in (good[:1], good[:100], good[:-1], good + b"\0", good + bytes(96), good.ljust(wire.HELLO_MAX, b"\0")):
        target.refuses(octets, Error.MALFORMED_HELLO, f"{len(octets)} octets that say {len(good)}")
    target.refuses(good.ljust(wire.HELLO_MAX + 1, b"\0"), Error.MALFORMED_HELLO, "a hello of 4097 octets")
    for length in (0, len(good) - 1, len(good) + 96, 0xFFFFFFFF):
        target.refuses(hello(target.want(), length=length), Error.MALFORMED_HELLO, f"length {length}")


@case("MEET-4", "REG-4")
def case_hello_reserved(target: Target) -> None:
    """Every reserved octet of header and device record must be zero."""
    target.refuses(hello(target.want(), zero=1), Error.MALFORMED_HELLO, "octet 15")
    for n in range(20):
        octets = hello(target.want(), reserved=bytes(n) + b"\1" + bytes(19 - n))
        target.refuses(octets, Error.MALFORMED_HELLO, f"octet {108 + n}")
    for n in range(16):
        want = target.want()._replace(reserved=bytes(n) + b"\1" + bytes(15 - n))
        target.refuses(hello(want), Error.MALFORMED_HELLO, f"octet {128 + 80 + n}")


@case("MEET-4", "THR-2")
def case_hello_names(target: Target) -> None:
    """A name is 1 to 67 letters and digits, padded with NUL, and stands once."""
    own = target.device.name.encode()
    bad = [
        b"",
        b"../x",
        b"a b",
        b"a-b",
        b"a" * NAME_FIELD,
        own + b"\0x",
        b"\0" + own,
        b"\xff\xfe",
        "é".encode(),
        b"a\n",
    ]
    for name in bad:
        target.refuses(hello(Want(name)), Error.MALFORMED_HELLO, f"the name {name!r}")
    target.refuses(hello(Want(own), Want(own)), Error.MALFORMED_HELLO, "a name that stands twice")


@case("MEET-4", "THR-2")
def case_hello_record_count(target: Target) -> None:
    """A hello asks for at most 16 devices, and brings as many records as it says."""
    many = [Want(b"x%d" % n) for n in range(wire.MAX_DEVICES + 1)]
    target.refuses(hello(*many), Error.MALFORMED_HELLO, "17 devices")
    for records in (0, 2, wire.MAX_DEVICES, 0xFFFF):
        target.refuses(hello(target.want(), records=records), Error.MALFORMED_HELLO, f"one record, said {records}")


@case("MEET-4")
def case_hello_numbers(target: Target) -> None:
    """dma_bits is 12 to 64, a mode 0 or 1, and what is required is among what is offered."""
    for bits in (0, 11, 65, 255):
        target.refuses(hello(target.want(), dma_bits=bits), Error.MALFORMED_HELLO, f"dma_bits {bits}")
    for mode in (2, 0x100, 0xFFFF):
        target.refuses(hello(target.want()._replace(mode=mode)), Error.MALFORMED_HELLO, f"mode {mode}")
    for bit in (Feature.EVENTS, 1 << 63):
        octets = hello(target.want(), features=int(wire.BUILT & ~Feature.EVENTS), required=int(bit))
        target.refuses(octets, Error.MALFORMED_HELLO, f"{bit:#x} required and not offered")
    with target.meet(dma_bits=12):  # without effect when no DMA memory is asked for
        pass


@case("MEET-20", needs="msi")
def case_vectors_without_feature(target: Target) -> None:
    """Vectors need the feature of their mode."""
    for mode, bit in ((VectorMode.RELAYED, Feature.MSI_RELAYED), (VectorMode.DIRECT, Feature.MSI_DIRECT)):
        octets = hello(target.want()._replace(mode=mode), features=int(wire.BUILT & ~bit))
        target.refuses(octets, Error.UNKNOWN_FEATURE, f"a {mode.name.lower()} vector without its feature")


@case("MEET-5", "VER-1")
def case_other_major(target: Target) -> None:
    """Another major version is refused as such, whatever else has changed with it."""
    for major in (0, 2, 0xFFFF):
        target.refuses(hello(target.want(), major=major), Error.WRONG_VERSION, f"major version {major}")


@case("MEET-5")
def case_newer_minor(target: Target) -> None:
    """The minor in force is the lower of the two."""
    with target.dial() as peer:
        peer.say(hello(target.want(), minor=0xFFFF))
        reply = peer.hear()
        expect(not reply.error and reply.minor < 0xFFFF, "a session with the back's own minor", str(reply.minor))
        peer.map(reply.boot_info)
        expect(peer.info.minor == reply.minor, "one minor in reply and boot-info", f"{peer.info.minor}, {reply.minor}")
    with target.meet(minor=0) as peer:
        expect(peer.info.minor == 0, "minor 0 for a front of 1.0", str(peer.info.minor))


@case("MEET-6", "VER-2")
def case_features(target: Target) -> None:
    """The features in force are those that both sides have."""
    with target.meet(features=(1 << 64) - 1) as peer:
        back = peer.info.features
    expect(not int(back) & ~int(wire.BUILT), "no feature that 1.0 does not build", f"{back:#x}")
    for offered in (Feature(0), Feature.RESET, Feature.EVENTS, Feature.BLOCK | Feature.RESET, wire.BUILT):
        with target.meet(target.want()._replace(msi=0), features=int(offered)) as peer:
            expect(peer.info.features == offered & back, f"{offered & back:#x} in force", f"{peer.info.features:#x}")


@case("MEET-6")
def case_required_feature(target: Target) -> None:
    """A feature that is required and not built is refused."""
    for bit in (Feature.GRANTS, Feature.AER, 1 << 40, 1 << 63):
        octets = hello(target.want(), features=int(wire.BUILT) | bit, required=int(bit))
        target.refuses(octets, Error.UNKNOWN_FEATURE, f"required {bit:#x}")
        octets = hello(Want(b"nosuchdevice"), features=int(wire.BUILT) | bit, required=int(bit))
        target.refuses(octets, Error.UNKNOWN_FEATURE, "a feature before a name")  # the order of the checks


@case("VER-6")
def case_no_features(target: Target) -> None:
    """A front that uses no optional feature does everything by messages."""
    with target.session(target.want()._replace(msi=0), features=0) as peer:
        expect(not peer.info.features, "no feature in force", f"{peer.info.features:#x}")
        peer.nop()
        peer.conf_read(0, 4)
        bar = peer.info.devices[0].bars[0]
        peer.bar_read(bar.index, 0, 4)


@case("MEET-24", "MEET-4")
def case_hello_records(target: Target) -> None:
    """Records of unknown kinds are skipped by their length; lengths that do not fit are refused."""
    stranger = strange(77, 24)
    with target.meet(stranger, target.want()) as peer:
        expect(len(peer.info.devices) == 1, "one device", str(len(peer.info.devices)))
    longer = target.want()._replace(length=104).build() + bytes(8)
    with target.meet(longer) as peer:
        expect(len(peer.info.devices) == 1, "one device of a longer record", str(len(peer.info.devices)))
    target.refuses(hello(target.want(), bring_memory(flags=1)), Error.MALFORMED_HELLO, "flags of a memory")
    for length in (0, 4, 7, 88, 100, 104, 0xFFF8):
        octets = hello(target.want()._replace(length=length))
        target.refuses(octets, Error.MALFORMED_HELLO, f"a device record that says {length} octets")


@case("MEET-24", "MEET-6")
def case_wanted_grants(target: Target) -> None:
    """Without the feature a wanted grant is ignored, or refused if it is required; memory of the front is refused."""
    if not wire.BUILT & Feature.GRANTS:
        with target.meet(target.want(), want_grant()) as peer:
            expect(len(peer.info.devices) == 1, "a session without the grant", "none")
        target.refuses(hello(target.want(), want_grant(flags=1)), Error.UNKNOWN_FEATURE, "a required grant")
    target.refuses(hello(target.want(), bring_memory()), Error.UNKNOWN_FEATURE, "memory of the front")
    target.refuses(hello(target.want(), want_grant(device=3)), Error.MALFORMED_HELLO, "a grant of no device")
    target.refuses(hello(target.want(), *[want_grant()] * 65), Error.MALFORMED_HELLO, "65 wanted grants")
