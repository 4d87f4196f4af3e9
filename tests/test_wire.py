# SPDX-License-Identifier: MIT
"""Octets: golden vectors, round trips, and what must be refused - in Python and in C."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcisplit import wire
from pcisplit._core import ffi, lib
from pcisplit.bootinfo import parse_boot_info_untrusted
from pcisplit.errors import ERRORS, RemoteProtocolError, error_name
from pcisplit.messages import (
    Event,
    Hello,
    Need,
    Reply,
    Request,
    Response,
    check_request_untrusted,
    parse_hello_untrusted,
    parse_reply_untrusted,
)
from pcisplit.wire import Error, Feature, Op, VectorMode

VECTORS = sorted((Path(__file__).resolve().parent.parent / "spec" / "vectors").glob("*.gen.hex"))
PARSERS = {
    "request": Request.from_bytes_untrusted,
    "response": Response.from_bytes_untrusted,
    "event": Event.from_bytes_untrusted,
    "hello": parse_hello_untrusted,
    "reply": parse_reply_untrusted,
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
        assert {f"request-{stem}.gen.hex", f"response-{stem}.gen.hex"} <= names


@pytest.mark.clause("ERR-1")
def test_every_error_has_a_meaning_and_fits_its_field() -> None:
    assert set(ERRORS) == set(Error)
    assert all(-(1 << 15) <= error <= 0 for error in Error)


@given(st.binary(min_size=64, max_size=64))
@pytest.mark.clause("REG-4", "ERR-2", "VER-5")
def test_python_and_c_judge_any_request_alike(octets: bytes) -> None:
    assert c_check(octets) is check_request_untrusted(octets)


@pytest.mark.parametrize("op", Op)
@pytest.mark.clause("REG-4", "ERR-2", "BAR-10")
def test_python_and_c_judge_every_strange_octet_alike(op: Op) -> None:
    """One octet of a request at a time, each of its bits and all of them: the verdict is the same, and only used ones pass."""
    uses = wire.USES.get(op, wire.Uses(0))
    for at in range(2, 64):
        for octet in (*(1 << bit for bit in range(8)), 0xFF):
            octets = bytearray(Request(op, 7, 0, 1).to_bytes())
            octets[at] = octet
            verdict = check_request_untrusted(bytes(octets))
            assert c_check(bytes(octets)) is verdict, (at, octet)
            if op in wire.USES and at in (2, 3):
                posted = at == 2 and octet == 1 and uses & wire.Uses.POSTED
                assert verdict is (Error.SUCCESS if posted else Error.BAD_REQUEST), (at, octet)
            if at >= 48:
                assert verdict is not Error.SUCCESS, (at, octet)


needs = st.builds(
    Need, st.from_regex(r"[A-Za-z0-9]{1,67}", fullmatch=True), st.integers(0, 0xFFFF), st.sampled_from(VectorMode)
)
hellos = st.builds(
    Hello,
    driver=st.text("abcdefgh", max_size=20),
    devices=st.lists(needs, max_size=16, unique_by=lambda need: need.name).map(tuple),
    dma_bytes=st.integers(0, 2**64 - 1),
    dma_bits=st.integers(12, 64),
    features=st.just(wire.BUILT | Feature.MSIX),
    required=st.sampled_from([Feature(0), Feature.BLOCK]),
)


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
    from pcisplit.vectors import BOOT

    octets = bytearray(BOOT.to_bytes())
    at %= len(octets)
    octets[at : at + len(damage)] = damage[: len(octets) - at]
    for parser in (parse_boot_info_untrusted, parse_reply_untrusted):
        with contextlib.suppress(RemoteProtocolError):
            parser(bytes(octets))
    regions = [ffi.new("uint8_t[]", size) for size in (0x15000, 0x17000, 0x200000)]
    ffi.memmove(regions[0], wire.F2B_MAGIC.to_bytes(4, "little"), 4)
    ffi.memmove(regions[1], wire.B2F_MAGIC.to_bytes(4, "little"), 4)
    sizes, error = ffi.new("uint64_t[3]", [0x15000, 0x17000, 0x200000]), ffi.new("int *")
    handle = lib.pcsf_new(bytes(octets), len(octets), *regions, sizes, -1, -1, -1, error)
    if handle != ffi.NULL:
        lib.pcsf_free(handle)


def test_a_reply_carries_its_text() -> None:
    reply = Reply(Error.DEVICE_TAKEN, "session 3 has nic0")
    assert parse_reply_untrusted(reply.to_bytes()) == reply
