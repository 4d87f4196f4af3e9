# SPDX-License-Identifier: MIT
"""The kit's own encoders and decoders against pcisplit's, and against the golden vectors: layouts written twice agree."""

import dataclasses
from pathlib import Path

import pytest

from pcisplit import wire
from pcisplit.conformance import boot, meeting, octets
from pcisplit.conformance.case import Violation
from pcisplit.conformance.meeting import Said, Want, Wish
from pcisplit.conformance.octets import Answer, Asked, Hint
from pcisplit.proto.meeting import Need, parse_reply_untrusted
from pcisplit.proto.slots import Event, Request, Response, must_be_zero
from pcisplit.proto.vectors import BOOT, HELLO, VECTORS, Vector
from pcisplit.wire import BUILT_OPERATIONS, Op, Record

GOOD = [vector for vector in VECTORS if vector.error is None]


def of_kind(kind: str) -> list[Vector]:
    return [vector for vector in GOOD if vector.kind == kind]


def golden(vector: Vector) -> bytes:
    """The octets in the file that a foreign implementer reads."""
    text = (Path(__file__).parent.parent / "spec/vectors" / f"{vector.name}.gen.hex").read_text()
    return bytes.fromhex("".join(line for line in text.splitlines() if not line.startswith("#")))


@pytest.mark.parametrize("vector", of_kind("request"), ids=lambda vector: vector.name)
def test_requests(vector: Vector) -> None:
    came, asked = Asked.parse(golden(vector)), Request.from_bytes_untrusted(vector.octets)
    for name in ("op", "flags", "id", "device", "region", "width", "generation", "sequence"):
        assert getattr(came, name) == getattr(asked, name), name
    fields = {name: value for name, value in came.fields.items() if name != "reserved"}
    for name, value in fields.items():
        theirs = getattr(asked, name)
        assert (value[: len(theirs)] if name == "element" else value) == theirs, name
    head = {
        name: getattr(came, name) for name in ("flags", "id", "device", "region", "width", "generation", "sequence")
    }
    assert octets.request(came.op, **head, **fields) == golden(vector)


@pytest.mark.parametrize("vector", of_kind("response"), ids=lambda vector: vector.name)
def test_responses(vector: Vector) -> None:
    came, answer = Answer.parse(golden(vector)), Response.from_bytes_untrusted(vector.octets)
    for name in (set(Answer._fields) & {field.name for field in dataclasses.fields(Response)}) - {"values"}:
        assert getattr(came, name) == getattr(answer, name), name
    assert came.values == answer.values[: answer.done]
    assert came.build() == golden(vector)


@pytest.mark.parametrize("vector", of_kind("event"), ids=lambda vector: vector.name)
def test_events(vector: Vector) -> None:
    came, event = Hint.parse(golden(vector)), Event.from_bytes_untrusted(vector.octets)
    assert came == (event.kind, 0, event.id, event.device, event.vector, event.generation, event.value, event.sequence)
    assert came.build() == golden(vector)


def test_unused_octets() -> None:
    """What each built operation must leave zero; the posted flag and a pack's id are looked at by cases of their own."""
    assert octets.USED.keys() == BUILT_OPERATIONS.keys()
    for op, used in octets.USED.items():
        zero = must_be_zero(Op(op)).to_bytes(64, "little")
        mine = {at for begin, end in used for at in range(begin, end)} | set(range(12, 16))
        assert {at for at in range(10, octets.SEQUENCE) if not zero[at]} == mine, op


@pytest.mark.parametrize(
    "record, places, size",
    [
        (wire.FRONT_HEADER, octets.FRONT, octets.FRONT_SIZE),
        (wire.BACK_HEADER, octets.BACK, octets.BACK_SIZE),
        (wire.DEVICE_STATE, octets.DEVICE, octets.DEVICE_SIZE),
    ],
    ids=["front", "back", "device"],
)
def test_words(record: Record, places: dict[str, tuple[int, int]], size: int) -> None:
    assert {field.name: (at, field.size) for field, at in record.places if field.role == ""} == places
    assert record.size == size


def test_hello() -> None:
    needs = [Want(need.name.encode(), need.msi, need.mode) for need in HELLO.devices]
    made = meeting.hello(*needs, dma_bytes=HELLO.dma_bytes, dma_bits=HELLO.dma_bits, driver=HELLO.driver.encode())
    assert made == HELLO.to_bytes()
    names = tuple(need.name.encode() for need in HELLO.devices)
    assert Wish.parse(made) == (int(HELLO.features), names, tuple(need.msi for need in HELLO.devices), HELLO.dma_bytes)
    for vector in of_kind("hello"):
        Wish.parse(golden(vector))
    planned = Need("nic0", 1, msix=2, intx=1)
    want = Want(b"nic0", planned.msi, msix=2, intx=1)
    assert (
        meeting.hello(want)
        == dataclasses.replace(HELLO, driver="conformance", devices=(planned,), dma_bytes=0, dma_bits=64).to_bytes()
    )


def test_reply() -> None:
    for vector in of_kind("reply"):
        said, reply = Said.parse(golden(vector)), parse_reply_untrusted(vector.octets)
        assert (said.error, said.text, said.boot_info) == (reply.error, reply.text, reply.boot_info)
        assert said.build() == golden(vector)


def test_boot_info() -> None:
    """Kinds that this kit does not look into are skipped; every other block is built again, octet for octet."""
    block = boot.Block.parse(golden(next(vector for vector in GOOD if vector.name == "boot-info")))
    assert {part.index: part.fd for part in block.regions} == {part.index: part.fd for part in BOOT.regions}
    assert block.devices[0].name == BOOT.devices[0].name
    assert block.devices[0].runs[0].counters == BOOT.devices[0].vectors[0].counters
    assert sorted(split(block.build())) == sorted(split(BOOT.to_bytes()))
    boot.Block.parse(golden(next(vector for vector in GOOD if vector.name == "boot-info-planned")))


def split(block: bytes) -> list[bytes]:
    """Header and records of a block."""
    parts, at = [block[: boot.BLOCK_SIZE]], boot.BLOCK_SIZE
    while at < len(block):
        length = int.from_bytes(block[at + 2 : at + 4], "little")
        parts.append(block[at : at + length])
        at += length
    return parts


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v.error is not None and v.kind in ("hello", "boot_info")], ids=lambda v: v.name
)
def test_what_must_be_refused(vector: Vector) -> None:
    parse = Wish.parse if vector.kind == "hello" else boot.Block.parse
    if vector.name == "bad-hello-name":
        return  # whose names are served is the scripted back's knowledge
    with pytest.raises((Violation, ValueError)):
        parse(golden(vector))


def test_reserved_octets_of_answers() -> None:
    for vector in of_kind("response"):
        if vector.octets[0] != Op.BAR_READS:
            with pytest.raises(Violation):
                Answer.parse(octets.poke(vector.octets, 59, 1))
    with pytest.raises(Violation):
        Answer.parse(Answer(Op.NOP, -99, 0, 0, 0, 0).build())
    with pytest.raises(Violation):
        Answer.parse(Answer(Op.BAR_READS, 0, 0, 0, 0, 0, values=(1, 2), done=1).build())
