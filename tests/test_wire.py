# SPDX-License-Identifier: MIT
"""Octets: golden vectors, round trips, and what must be refused - in Python and in C."""

import contextlib
import dataclasses
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcisplit import wire
from pcisplit._core import ffi, lib
from pcisplit.proto.bootinfo import Bar, BootInfo, Grant, build_record, parse_boot_info_untrusted
from pcisplit.proto.errors import ERRORS, RemoteProtocolError, error_name
from pcisplit.proto.meeting import (
    FrontMemory,
    Hello,
    Late,
    Need,
    Reply,
    WantedGrant,
    parse_hello_untrusted,
    parse_late_untrusted,
    parse_reply_untrusted,
)
from pcisplit.proto.octets import number
from pcisplit.proto.slots import Event, Request, Response, check_request_untrusted, sequence_of
from pcisplit.proto.vectors import BOOT_LARGE
from pcisplit.wire import (
    OPERATIONS,
    BarFlag,
    Error,
    Feature,
    GrantKind,
    Op,
    RecordKind,
    RequestFlag,
    Uses,
    VectorMode,
    gate,
    limits,
)
from tests.liar import Liar

SPEC = Path(__file__).resolve().parent.parent / "spec"
VECTORS = sorted((Path(__file__).resolve().parent.parent / "spec" / "vectors").glob("*.gen.hex"))
PARSERS = {
    "request": Request.from_bytes_untrusted,
    "response": Response.from_bytes_untrusted,
    "event": Event.from_bytes_untrusted,
    "hello": parse_hello_untrusted,
    "reply": parse_reply_untrusted,
    "late": parse_late_untrusted,
    "boot_info": parse_boot_info_untrusted,
}


def read_vector(path: Path) -> tuple[dict[str, str], bytes]:
    lines = path.read_text().splitlines()
    notes = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    return notes, bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def c_check(octets: bytes) -> Error:
    return Error(lib.pcs_check_request_octets(ffi.from_buffer(bytearray(octets))))


@pytest.mark.parametrize("path", [p for p in VECTORS if not p.name.startswith("bad-")], ids=lambda p: p.name)
@pytest.mark.clause("VER-3", "BOOT-1")
def test_a_vector_is_read_and_written_back(path: Path) -> None:
    notes, octets = read_vector(path)
    message = PARSERS[notes["message"]](octets)
    assert message.to_bytes() == octets  # type: ignore[attr-defined]
    if notes["message"] == "request":  # and the checkers of both languages agree that it may be asked
        expected = Error.SUCCESS if OPERATIONS[Op(number(octets, 0, 2))].built else Error.NOT_IMPLEMENTED
        assert check_request_untrusted(octets) is c_check(octets) is expected


@pytest.mark.parametrize("path", [p for p in VECTORS if p.name.startswith("bad-")], ids=lambda p: p.name)
@pytest.mark.clause("REG-4", "MEET-4", "MEET-5", "BOOT-4", "VER-1")
def test_a_bad_vector_is_refused_with_its_error(path: Path) -> None:
    notes, octets = read_vector(path)
    if notes["message"] == "request":
        assert error_name(check_request_untrusted(octets)) == notes["error"]
        assert error_name(c_check(octets)) == notes["error"]
        return
    with pytest.raises(RemoteProtocolError) as refused:
        PARSERS[notes["message"]](octets)
    assert error_name(refused.value.code) == notes["error"]


def test_there_is_a_vector_for_every_operation() -> None:
    names = {path.name for path in VECTORS}
    for op in Op:
        stem = op.name.lower().replace("_", "-")
        answered = not OPERATIONS[op].uses & Uses.MUST_POST
        assert f"request-{stem}.gen.hex" in names and (f"response-{stem}.gen.hex" in names) is answered


@pytest.mark.clause("ERR-1")
def test_every_error_has_a_meaning_and_fits_its_field() -> None:
    assert set(ERRORS) == set(Error)
    assert all(-(1 << 15) <= error <= 0 for error in Error)


@given(st.binary(min_size=64, max_size=64))
@pytest.mark.clause("REG-4", "ERR-2", "VER-5")
def test_python_and_c_judge_any_request_alike(octets: bytes) -> None:
    assert c_check(octets) is check_request_untrusted(octets)


@pytest.mark.parametrize("op", Op)
@pytest.mark.clause("REG-4", "ERR-2", "BAR-10", "BAR-42", "VER-5")
def test_python_and_c_judge_every_strange_octet_alike(op: Op) -> None:
    """One octet of a request at a time, each of its bits and all of them: the verdict is the same, and only used ones pass."""
    row = OPERATIONS[op]
    must = RequestFlag.POSTED if row.uses & Uses.MUST_POST else 0
    reserved = {n for f, at in row.request.places if f.role == "zero" for n in range(at, at + f.size)}
    for at in range(2, 60):
        for octet in (*(1 << bit for bit in range(8)), 0xFF):
            octets = bytearray(Request(op, 0, 0, 1, must).to_bytes())
            octets[at] = octet
            verdict = check_request_untrusted(bytes(octets))
            assert c_check(bytes(octets)) is verdict, (at, octet)
            if not row.built:
                assert verdict is Error.NOT_IMPLEMENTED
            elif at in (2, 3):
                posted = at == 2 and octet == 1 and row.uses & Uses.POSTED
                still = at == 3 and must
                assert verdict is (Error.SUCCESS if posted else Error.BAD_REQUEST), (at, octet, still)
            elif at in reserved:
                assert verdict is Error.BAD_REQUEST, (at, octet)


@given(st.integers(0, 0xFFFFFFFF))
@pytest.mark.clause("RING-16")
def test_the_sequence_is_no_part_of_a_request(sequence: int) -> None:
    octets = Request(Op.NOP, 1, 0, 1, sequence=sequence).to_bytes()
    assert check_request_untrusted(octets) is c_check(octets) is Error.SUCCESS
    assert sequence_of(octets) == sequence


def test_every_limit_has_its_row_and_every_row_its_number() -> None:
    numbers = {name for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}
    assert numbers == wire.LIMITS.keys()
    text = "".join(path.read_text() for path in SPEC.glob("*.md"))
    strange = [name for name, limit in wire.LIMITS.items() if f"[{limit.clause} " not in text]
    assert not strange, "limits with a clause that is not there"


def test_every_operation_has_its_row() -> None:
    assert OPERATIONS.keys() == set(Op)
    for op, row in OPERATIONS.items():
        assert row.op is op and row.request.size == row.response.size == wire.SLOT_SIZE
        assert (SPEC / f"{row.chapter}.md").exists()
        assert row.built <= (not row.feature or bool(row.feature & wire.BUILT)), "built, and its feature is not"


@pytest.mark.parametrize("op", Op)
@pytest.mark.clause("VER-5", "MEET-6")
def test_an_operation_needs_one_of_its_features(op: Op) -> None:
    row = OPERATIONS[op]
    for feature in Feature:
        expected = row.built and (not row.feature or bool(row.feature & feature))
        assert (gate(op, feature) is Error.SUCCESS) is expected


u16, u32, u64 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, 2**64 - 1)
needs = st.builds(
    Need,
    st.from_regex(r"[A-Za-z0-9]{1,67}", fullmatch=True),
    u16,
    st.sampled_from(VectorMode),
    u16,
    st.integers(0, 1),
)
grants = st.builds(
    WantedGrant,
    st.just(0),
    st.integers(0, 5),
    u32.map(lambda n: n * 4096),
    u32,
    st.sampled_from(GrantKind),
    st.booleans(),
    u64,
)
memories = st.builds(FrontMemory, u16, u64, u64, u64)
hellos = st.builds(
    Hello,
    driver=st.text("abcdefgh", max_size=20),
    devices=st.lists(needs, max_size=16, unique_by=lambda need: need.name).map(tuple),
    dma_bytes=st.integers(0, 2**64 - 1),
    dma_bits=st.integers(12, 64),
    features=st.just(wire.BUILT | Feature.MSIX),
    required=st.sampled_from([Feature(0), Feature.BLOCK]),
    memories=st.lists(memories, max_size=8).map(tuple),
)


@given(hellos, st.lists(grants, max_size=64).map(tuple))
@pytest.mark.clause("MEET-24")
def test_a_hello_with_wanted_grants_survives_its_octets(hello: Hello, wanted: tuple[WantedGrant, ...]) -> None:
    if hello.devices:
        hello = dataclasses.replace(hello, grants=wanted)
        assert len(hello.to_bytes()) <= wire.HELLO_MAX
        assert parse_hello_untrusted(hello.to_bytes()) == hello


@given(hellos)
def test_a_hello_survives_its_octets(hello: Hello) -> None:
    assert parse_hello_untrusted(hello.to_bytes()) == hello


@given(
    st.one_of(
        st.binary(max_size=5000), st.binary(max_size=400).map(lambda b: Hello("d", (Need("a"),)).to_bytes()[:20] + b)
    )
)
@pytest.mark.clause("MEET-4")
def test_garbage_is_a_hello_or_a_remote_error(octets: bytes) -> None:
    """A parser of peer octets raises RemoteProtocolError and nothing else."""
    try:
        parse_hello_untrusted(octets)
    except RemoteProtocolError as problem:
        assert problem.code in (Error.MALFORMED_HELLO, Error.WRONG_VERSION)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=16))
@pytest.mark.clause("BOOT-4", "THR-8")
def test_a_damaged_boot_info_is_read_or_refused(at: int, damage: bytes) -> None:
    """Python's parser and the C frontend's: nothing but a refusal, no crash, whatever is in the block."""
    from pcisplit.proto.vectors import BOOT

    octets = bytearray(BOOT.to_bytes())
    at %= len(octets)
    octets[at : at + len(damage)] = damage[: len(octets) - at]
    for parser in (parse_boot_info_untrusted, parse_reply_untrusted):
        with contextlib.suppress(RemoteProtocolError):
            parser(bytes(octets))
    sizes = ffi.new("uint64_t[3]", [region.size for region in BOOT.regions])
    regions = [ffi.new("uint8_t[]", size) for size in sizes]
    ffi.memmove(regions[0], wire.F2B_MAGIC.to_bytes(4, "little"), 4)
    ffi.memmove(regions[1], wire.B2F_MAGIC.to_bytes(4, "little"), 4)
    error = ffi.new("int *")
    handle = lib.pcsf_new(bytes(octets), len(octets), *regions, sizes, -1, -1, -1, error)
    if handle != ffi.NULL:
        lib.pcsf_free(handle)


def test_a_reply_carries_its_text() -> None:
    reply = Reply(Error.DEVICE_TAKEN, "session 3 has nic0")
    assert parse_reply_untrusted(reply.to_bytes()) == reply


# --- boot-info, late messages, and the front's own look at answers ---------------------------------------------------------

boots = st.builds(
    lambda features, session, epoch, generation, ids, bars, name, minor: dataclasses.replace(
        BOOT_LARGE,
        features=BOOT_LARGE.features | features,
        session=session,
        epoch=epoch,
        minor=minor,
        devices=(
            dataclasses.replace(
                BOOT_LARGE.devices[0],
                name=name,
                vendor=ids[0],
                device_id=ids[1],
                generation=generation,
                bars=tuple(Bar(index, size, BarFlag(flags), address) for index, size, flags, address in bars),
            ),
        ),
    ),
    st.sampled_from(Feature),
    u64,
    u32,
    u32,
    st.tuples(u16, u16),
    st.lists(st.tuples(st.integers(0, 5), u64, st.integers(0, 7), u64), max_size=6),
    st.from_regex(r"[A-Za-z0-9]{1,67}", fullmatch=True),
    u16,
)


@given(boots)
@pytest.mark.clause("BOOT-1", "BOOT-8")
def test_a_boot_info_survives_its_octets(boot: BootInfo) -> None:
    assert parse_boot_info_untrusted(boot.to_bytes()) == boot


@given(boots, st.integers(11, 0xFFFF), st.integers(1, 8).map(lambda n: 8 * n))
@pytest.mark.clause("BOOT-3")
def test_a_record_of_an_unknown_kind_is_skipped(boot: BootInfo, kind: int, length: int) -> None:
    octets = bytearray(boot.to_bytes() + struct.pack("<HH", kind, length).ljust(length, b"\xff"))
    at = wire.BOOT_INFO.offset("length")
    octets[at : at + 8] = struct.pack(
        "<II", len(octets), number(bytes(octets), wire.BOOT_INFO.offset("records"), 4) + 1
    )
    assert parse_boot_info_untrusted(bytes(octets)) == boot


grant_records = st.builds(
    lambda index, device, fields: build_record(RecordKind.GRANT, Grant(index, *fields), device),
    u16,
    u16,
    st.tuples(u32, st.integers(0, 5), st.sampled_from(GrantKind), u16, u32, u64, u64, u64),
)


@given(st.builds(Late, u32, grant_records, u16, u32))
def test_a_late_message_survives_its_octets(late: Late) -> None:
    assert parse_late_untrusted(late.to_bytes()) == late


@pytest.mark.parametrize("path", [p for p in VECTORS if p.name.startswith("response-")], ids=lambda p: p.name)
@pytest.mark.clause("THR-32", "RING-7")
def test_pcifront_takes_an_answer_as_a_back_may_write_it(path: Path) -> None:
    """A golden answer is believed as it is; with one octet that must be zero it is op_failed, for pcifront as for Python."""
    answer = dataclasses.replace(Response.from_bytes_untrusted(read_vector(path)[1]), device=0, generation=1)
    record = OPERATIONS[Op(answer.op)].response
    zeros = [at for field, start in record.places if field.role == "zero" for at in range(start, start + field.size)]
    with Liar() as liar, liar.connect() as session:
        for number_of, strange in enumerate((None, *zeros[:: max(1, len(zeros) // 5)], *zeros[-1:])):
            (ident,) = session._handle.submit([Request(answer.op)])
            octets = bytearray(dataclasses.replace(answer, id=ident).to_bytes())
            if strange is not None:
                octets[strange] = 0x40
            liar.answer(number_of, bytes(octets))
            (got,) = session._handle.poll_or_wait()
            assert got.error == (answer.error if strange is None else Error.OP_FAILED), strange
            if strange is None:
                assert (got.value, got.values, got.done) == (answer.value, answer.values, answer.done)
                assert session.statistics["strange"] == 0
