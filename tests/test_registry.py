# SPDX-License-Identifier: MIT
"""Who may have what: rights, groups, limits, quarantine, and the words of each refusal."""

import pytest

from pcisplit import wire
from pcisplit.back.devices.models.ram import RamModel
from pcisplit.back.supervisor.registry import NOBODY, SESSIONS_PER_UID, Entry, Peer, Registry, mebibytes
from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.proto.meeting import Hello, Need
from pcisplit.wire import Error, Feature, VectorMode

ROOT, ALICE, BOB = Peer(1, 0, 0), Peer(2, 1000, 1000), Peer(3, 1001, 100)


def make(*entries: Entry, dma: int = 16 << 20) -> Registry:
    return Registry(entries, dma, own_uid=0)


def entry(
    name: str,
    group: str = "",
    uids: frozenset[int] = frozenset(),
    gids: frozenset[int] = frozenset(),
    tenders: frozenset[int] = frozenset(),
) -> Entry:
    device = RamModel({})
    device.group = group or name
    return Entry(name, device, uids, gids, tenders)


def refusal(registry: Registry, hello: Hello, peer: Peer) -> tuple[Error, str]:
    with pytest.raises(RemoteProtocolError) as refused:
        registry.claim(hello, peer, 9)
    assert not any(e.session == 9 for e in registry.entries.values()), "something was kept"
    return refused.value.code, str(refused.value)


def wants(*names: str, **more: object) -> Hello:
    return Hello("test", tuple(Need(name) for name in names), **more)  # type: ignore[arg-type]


@pytest.mark.clause("MEET-10")
def test_without_rights_only_the_backends_own_uid_may_have_it() -> None:
    registry = make(entry("a"))
    code, text = refusal(registry, wants("a"), ALICE)
    assert code is Error.ACCESS_DENIED
    assert "serve it with uid=1000" in text
    registry.claim(wants("a"), ROOT, 1)


@pytest.mark.clause("MEET-10")
def test_rights_by_uid_and_by_gid() -> None:
    registry = make(entry("a", uids=frozenset({1000})), entry("b", gids=frozenset({100})))
    registry.claim(wants("a"), ALICE, 1)
    registry.claim(wants("b"), BOB, 2)
    assert refusal(make(entry("a", uids=frozenset({1000}))), wants("a"), ROOT)[0] is Error.ACCESS_DENIED


@pytest.mark.clause("MEET-10")
def test_nobody_is_refused_even_when_allowed() -> None:
    registry = make(entry("a", uids=frozenset({NOBODY})))
    with pytest.raises(RemoteProtocolError) as refused:
        registry.enter(Peer(1, NOBODY, NOBODY))
    assert refused.value.code is Error.ACCESS_DENIED
    assert refusal(registry, wants("a"), Peer(1, NOBODY, NOBODY))[0] is Error.ACCESS_DENIED


@pytest.mark.clause("MEET-14")
def test_connections_of_one_uid_are_limited() -> None:
    registry = make(entry("a"))
    for _ in range(SESSIONS_PER_UID):
        registry.enter(ALICE)
    with pytest.raises(RemoteProtocolError) as refused:
        registry.enter(ALICE)
    assert refused.value.code is Error.TOO_MANY_SESSIONS
    registry.enter(BOB)
    registry.leave(ALICE)
    registry.enter(ALICE)


@pytest.mark.clause("MEET-7", "MEET-8")
def test_all_or_nothing() -> None:
    registry = make(entry("a"), entry("b"))
    assert refusal(registry, wants("a", "c"), ROOT)[0] is Error.UNKNOWN_DEVICE
    registry.claim(wants("b"), ROOT, 1)
    code, text = refusal(registry, wants("a", "b"), ROOT)
    assert (code, "session 1 has b" in text) == (Error.DEVICE_TAKEN, True)


@pytest.mark.clause("MEET-7")
def test_devices_of_one_group_go_to_one_session() -> None:
    registry = make(entry("a", "iommu-group-7"), entry("b", "iommu-group-7"))
    registry.claim(wants("a"), ROOT, 1)
    code, text = refusal(registry, wants("b"), ROOT)
    assert code is Error.DEVICE_TAKEN
    assert "shares iommu-group-7 with a" in text
    assert "ask for both in one session" in text
    both = make(entry("a", "iommu-group-7"), entry("b", "iommu-group-7"))
    assert len(both.claim(wants("a", "b"), ROOT, 1)[0]) == 2


@pytest.mark.clause("MEET-7", "LIFE-12")
def test_what_is_quarantined_is_not_offered() -> None:
    registry = make(entry("a"))
    registry.entries["a"].quarantined = "the reset did not end"
    code, text = refusal(registry, wants("a"), ROOT)
    assert code is Error.QUARANTINED
    assert "--allow-no-reset" in text


@pytest.mark.clause("MEET-18")
def test_asking_for_everything() -> None:
    registry = make(entry("a"), entry("b", uids=frozenset({1000})), entry("c"))
    registry.claim(wants("c"), ROOT, 1)
    entries, needs = registry.claim(wants(), ROOT, 2)
    assert [e.name for e in entries] == ["a"]
    assert needs == (Need("a", wire.AS_MANY),)
    assert refusal(registry, wants(), ROOT)[0] is Error.DEVICE_TAKEN
    assert refusal(registry, wants(), BOB)[0] is Error.UNKNOWN_DEVICE


@pytest.mark.clause("MEET-16")
def test_too_much_dma_memory() -> None:
    registry = make(entry("a"), entry("b"))
    code, text = refusal(registry, wants("a", "b", dma_bytes=32 << 20), ROOT)
    assert code is Error.DMA_TOO_LARGE
    assert text == "driver 'test' needs 32 MiB of DMA memory for 2 devices; serve was given 16 MiB: use --dma 32M"


@pytest.mark.clause("MEET-6")
@pytest.mark.parametrize("required, name", [(Feature.GRANTS, "grants"), (Feature(1 << 40), "bits 0x10000000000")])
def test_a_required_feature_that_is_not_built(required: Feature, name: str) -> None:
    code, text = refusal(make(entry("a")), wants("a", features=wire.BUILT | required, required=required), ROOT)
    assert code is Error.UNKNOWN_FEATURE
    assert name in text


@pytest.mark.clause("MEET-20", "IRQ-10")
def test_vector_modes() -> None:
    direct = Hello("t", (Need("a", 1, VectorMode.DIRECT),))
    relayed = Hello("t", (Need("a", 1),), features=Feature.BLOCK)
    assert refusal(make(entry("a")), direct, ROOT)[0] is Error.ACCESS_DENIED
    assert refusal(make(entry("a")), relayed, ROOT)[0] is Error.UNKNOWN_FEATURE
    make(entry("a", tenders=frozenset({0}))).claim(direct, ROOT, 1)


def test_sizes_read_well() -> None:
    assert [mebibytes(n) for n in (4096, 3 << 20, 1 << 30, 5)] == ["4 KiB", "3 MiB", "1 GiB", "5 octets"]


@pytest.mark.clause("LIFE-12")
def test_a_neighbour_of_what_is_quarantined_is_not_offered_either() -> None:
    """It may still master the bus that they share, in their one IOMMU context."""
    registry = make(entry("a", "iommu-group-7"), entry("b", "iommu-group-7"))
    registry.entries["a"].quarantined = "the reset did not end"
    code, text = refusal(registry, wants("b"), ROOT)
    assert code is Error.QUARANTINED
    assert "shares iommu-group-7 with a" in text
    assert refusal(registry, wants(), ROOT)[0] is Error.DEVICE_TAKEN
