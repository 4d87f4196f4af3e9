# SPDX-License-Identifier: MIT
"""What is served to whom: names, devices, rights, who has what, what is quarantined. Decides refusals, does no I/O.

The checks of a meeting, in the order of spec/meeting.md; each refusal says what to change [MEET-9].
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pcisplit import pci, wire
from pcisplit.back.devices.device import Device
from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.proto.meeting import Hello, Need
from pcisplit.wire import Error, Feature, VectorMode

NOBODY = 65534
SESSIONS_PER_UID = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as SO_PEERCRED says. `pid` is for the log only."""

    pid: int
    uid: int
    gid: int


@dataclasses.dataclass(slots=True)
class Entry:
    """One served device. Without uids and gids, the backend's own uid may have it."""

    name: str
    device: Device
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    tenders: frozenset[int] = frozenset()  #: uids that may have direct vectors
    what: Mapping[str, Any] = dataclasses.field(default_factory=dict)  #: how worker or keeper make it; see ``specs``
    session: int = 0  #: 0: nobody has it
    quarantined: str = ""  #: why, or empty
    detached: bool = False  #: withheld by the operator
    dma_after: int = 0  #: IOVA where the window of its last session ended (exclusive) [DMA-8]

    def allows(self, peer: Peer, own_uid: int) -> bool:
        if peer.uid == NOBODY:
            return False
        if not self.uids and not self.gids:
            return peer.uid == own_uid
        return peer.uid in self.uids or peer.gid in self.gids


class Registry:
    """All entries of a backend. Called from one thread."""

    def __init__(self, entries: Sequence[Entry], dma_limit: int, own_uid: int) -> None:
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in entries}
        self.dma_limit, self._own_uid = dma_limit, own_uid
        self._held: dict[int, int] = {}  # by uid: sessions and meetings

    def enter(self, peer: Peer) -> None:
        """Count a connection of `peer`, until ``leave``. Raises RemoteProtocolError [MEET-10, MEET-14]."""
        if peer.uid == NOBODY:
            raise RemoteProtocolError(
                Error.ACCESS_DENIED, f"uid {NOBODY} is nobody; run the front under a uid of its own and allow that"
            )
        if self._held.get(peer.uid, 0) >= SESSIONS_PER_UID:
            text = f"uid {peer.uid} holds {SESSIONS_PER_UID} sessions already; close one first"
            raise RemoteProtocolError(Error.TOO_MANY_SESSIONS, text)
        self.hold(peer)

    def hold(self, peer: Peer) -> None:
        """Count what is left of a session of `peer` as one more, until ``leave``, whatever its limit."""
        self._held[peer.uid] = self._held.get(peer.uid, 0) + 1

    def leave(self, peer: Peer) -> None:
        self._held[peer.uid] -= 1
        if not self._held[peer.uid]:
            del self._held[peer.uid]

    def claim(self, hello: Hello, peer: Peer, session: int) -> tuple[list[Entry], tuple[Need, ...]]:
        """Give every device of `hello` to `session`, or none [MEET-8]. Raises RemoteProtocolError with the refusal.

        Returns the entries and the needs in their order; a hello without devices has become one need each.
        """
        _check_features(hello)
        needs = hello.devices or self._all_free(peer)
        entries = [self._entry(need.name) for need in needs]
        for entry in entries:
            self._check_right(entry, peer)
        for entry in entries:
            self._check_free(entry, entries)
        for entry, need in zip(entries, needs, strict=True):
            _check_mode(entry, need, peer, hello.features)
        self._check_dma(hello, len(entries))
        needs = tuple(_settled(need, hello.features) for need in needs)
        for entry in entries:
            entry.session = session
        return entries, needs

    def release(self, entries: Sequence[Entry], quarantined: Mapping[str, str]) -> None:
        """The devices of a session that is over can be had again, but for those in `quarantined`: name to reason."""
        for entry in entries:
            entry.session = 0
            entry.quarantined = quarantined.get(entry.name, "")

    def _all_free(self, peer: Peer) -> tuple[Need, ...]:
        """Every device that is served to `peer` and free, at most 16 [MEET-18]."""
        served = [entry for entry in self.entries.values() if entry.allows(peer, self._own_uid)]
        taken = {entry.device.group for entry in self.entries.values() if entry.session or entry.quarantined}
        free = [e for e in served if not e.quarantined and not e.detached and e.device.group not in taken]
        if not served:
            text = f"nothing is served to uid {peer.uid}; serve with uid={peer.uid}"
            raise RemoteProtocolError(Error.UNKNOWN_DEVICE, text)
        if not free:
            text = "every device that is served to you is taken or quarantined; ask for one by name to learn which"
            raise RemoteProtocolError(Error.DEVICE_TAKEN, text)
        return tuple(Need(entry.name, wire.AS_MANY) for entry in free[: wire.MAX_DEVICES])

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            served = ", ".join(self.entries) or "none"
            raise RemoteProtocolError(Error.UNKNOWN_DEVICE, f"no device {name!r} is served; this back has: {served}")
        return self.entries[name]

    def _check_right(self, entry: Entry, peer: Peer) -> None:
        if not entry.allows(peer, self._own_uid):
            text = (
                f"uid {peer.uid}, gid {peer.gid} may not have {entry.name}; serve it with uid={peer.uid} to allow that"
            )
            raise RemoteProtocolError(Error.ACCESS_DENIED, text)

    def _check_free(self, entry: Entry, asked: Sequence[Entry]) -> None:
        if entry.quarantined:
            text = f"{entry.name} is quarantined: {entry.quarantined}; serve with --allow-no-reset to offer it all the same"
            raise RemoteProtocolError(Error.QUARANTINED, text)
        if entry.detached:
            text = f"{entry.name} is detached by the operator; pcisplit attach {entry.name} offers it again"
            raise RemoteProtocolError(Error.DEVICE_TAKEN, text)
        if entry.session:
            text = f"session {entry.session} has {entry.name}; try again when it has ended"
            raise RemoteProtocolError(Error.DEVICE_TAKEN, text)
        for other in self.entries.values():
            if other.device.group == entry.device.group and other.quarantined:  # it may still master the bus they share
                text = f"{entry.name} shares {entry.device.group} with {other.name}, which is quarantined"
                raise RemoteProtocolError(Error.QUARANTINED, f"{text}: {other.quarantined}")
            if other.device.group == entry.device.group and other.session:
                text = f"{entry.name} shares {entry.device.group} with {other.name}, which session {other.session} has"
                raise RemoteProtocolError(Error.DEVICE_TAKEN, f"{text}: ask for both in one session")

    def _check_dma(self, hello: Hello, devices: int) -> None:
        if hello.dma_bytes not in (0, wire.DMA_ALL) and hello.dma_bytes > self.dma_limit:
            plural = "s" if devices > 1 else ""
            text = (
                f"driver {hello.driver!r} needs {mebibytes(hello.dma_bytes)} of DMA memory for {devices} device{plural}"
            )
            more = f"serve was given {mebibytes(self.dma_limit)}: use --dma {-(-hello.dma_bytes // (1 << 20))}M"
            raise RemoteProtocolError(Error.DMA_TOO_LARGE, f"{text}; {more}")


def mebibytes(size: int) -> str:
    """``16 MiB``; ``4 KiB`` where that is rounder."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} octets"


def _check_features(hello: Hello) -> None:
    if any(grant.required for grant in hello.grants):
        text = (
            "the front requires a grant, and this back has not built grants; mark it as not required and use messages"
        )
        raise RemoteProtocolError(Error.UNKNOWN_FEATURE, text)
    if hello.memories:
        text = "the front brings DMA memory, which this back has not built; ask for memory of the back by dma_bytes"
        raise RemoteProtocolError(Error.UNKNOWN_FEATURE, text)
    unknown = Feature(int(hello.required) & ~int(wire.BUILT))  # ~ of a Feature would forget bits without a name
    if unknown:
        known = [feature.name or "" for feature in Feature if feature in unknown]
        names = ", ".join(name.lower() for name in known) or f"bits {int(unknown):#x}"
        text = f"the front requires {names}, which this back has not built; make the front do without"
        raise RemoteProtocolError(Error.UNKNOWN_FEATURE, text)


def _check_mode(entry: Entry, need: Need, peer: Peer, features: Feature) -> None:
    wanted = Feature.MSI_DIRECT if need.mode is VectorMode.DIRECT else Feature.MSI_RELAYED
    if need.msi not in (0, wire.AS_MANY) and not features & wanted:
        text = f"{entry.name} is asked for {need.mode.name.lower()} vectors without the feature {(wanted.name or '').lower()}"
        raise RemoteProtocolError(Error.UNKNOWN_FEATURE, f"{text}; offer it in the hello")
    if need.mode is VectorMode.DIRECT and peer.uid not in entry.tenders:
        text = f"direct vectors of {entry.name} are for trusted tenders; serve it with tender={peer.uid} if uid {peer.uid} is one"
        raise RemoteProtocolError(Error.ACCESS_DENIED, text)


def _settled(need: Need, features: Feature) -> Need:
    """As many vectors as this front can have may be none [MEET-17, MEET-18]."""
    wanted = Feature.MSI_DIRECT if need.mode is VectorMode.DIRECT else Feature.MSI_RELAYED
    return need if need.msi != wire.AS_MANY or features & wanted else dataclasses.replace(need, msi=0)


def check_entry_name(name: str) -> str:
    """`name`, if it can name a device. Raises ValueError."""
    if not pci.is_device_name(name):
        raise ValueError(f"{name!r} cannot name a device: use 1 to 67 letters and digits")
    return name
