# SPDX-License-Identifier: MIT
"""What the operator is told and what he orders: the supervisor's side of the control plane (docs/control.md has the shapes)."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from pcisplit import __version__
from pcisplit.back.control_protocol import Code, ControlError
from pcisplit.back.supervisor.meeting import Meetings
from pcisplit.back.supervisor.registry import Entry, Registry
from pcisplit.back.supervisor.session import Session
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

#: Seconds for a worker to count; it waits for nobody.
STATS_SECONDS = 2.0
#: Seconds for a worker to read configuration space: its owner may be inside of a reset.
DUMP_SECONDS = 8.0
#: Seconds for a session to be torn down.
DETACH_SECONDS = 50.0


class Source:
    """Implements ``control.ControlSource`` over the registry and the sessions there are."""

    def __init__(self, registry: Registry, meetings: Meetings, path: Path) -> None:
        self._registry, self._meetings, self._path = registry, meetings, path
        self._started = time.time()

    async def list(self) -> dict[str, Any]:
        """Supervisor, devices, sessions."""
        stats = await self._all_stats()
        return {
            "supervisor": {
                "version": __version__,
                "pid": os.getpid(),
                "socket": str(self._path),
                "started": self._started,
            },
            "devices": [self._device(entry) for entry in self._registry.entries.values()],
            "sessions": [
                self._session(session, stats.get(session.number, {})) for session in self._meetings.sessions.values()
            ],
        }

    def _device(self, entry: Entry) -> dict[str, Any]:
        return {
            "name": entry.name,
            "spec": entry.device.spec,
            "group": entry.device.group,
            "state": state_of(entry),
            "session": entry.session or None,
            "quarantined": entry.quarantined,
        }

    def _session(self, session: Session, stats: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "number": session.number,
            "uid": session.peer.uid,
            "pid": session.peer.pid,
            "driver": session.hello.driver,
            "devices": [entry.name for entry in session.entries],
            "state": stats.get("state", "unknown"),
            "since": session.since,
            "worker_pid": session.worker.pid if session.worker else None,
            "counters": stats.get("session", {}),
        }

    async def _all_stats(self) -> dict[int, dict[str, Any]]:
        """What each worker counts, by session; empty for one that does not answer in time. All are asked at once."""
        found: dict[int, dict[str, Any]] = {}

        async def ask(session: Session) -> None:
            found[session.number] = await session.stats(STATS_SECONDS)

        async with trio.open_nursery() as nursery:
            for session in list(self._meetings.sessions.values()):
                found[session.number] = {}
                nursery.start_soon(ask, session)
        return found

    def _entry(self, name: str) -> Entry:
        if name not in self._registry.entries:
            served = ", ".join(self._registry.entries) or "none"
            raise ControlError(Code.UNKNOWN_DEVICE, f"no device {name!r} is served; this backend has: {served}")
        return self._registry.entries[name]

    def _session_of(self, entry: Entry) -> Session | None:
        return self._meetings.sessions.get(entry.session)

    async def dump(self, name: str, hardware: bool) -> dict[str, Any]:
        """Configuration space of a device in a session: as its front sees it, or as the hardware says."""
        entry = self._entry(name)
        session = self._session_of(entry)
        if session is None:
            text = f"{name} is in no session, so nobody has it open; connect a front, or read it with lspci -xxxx"
            raise ControlError(Code.WRONG_STATE, text)
        try:
            octets = await session.dump(name, hardware, DUMP_SECONDS)
        except DeviceError as problem:
            code = Code.TIMEOUT if problem.code is Error.TIMEOUT else Code.FAILED
            raise ControlError(code, str(problem)) from None
        bdf = entry.device.spec if "bdf" in entry.what else "0000:00:00.0"
        return {"name": name, "spec": entry.device.spec, "bdf": bdf, "octets": octets, "note": ""}

    async def stats(self, name: str | None) -> dict[str, Any]:
        """Counters of everything, or of one device and its session."""
        entries = [self._entry(name)] if name is not None else list(self._registry.entries.values())
        found = await self._all_stats()
        wanted = {entry.session for entry in entries}
        meetings = self._meetings
        return {
            "supervisor": {}
            if name is not None
            else {"sessions": len(meetings.sessions), "meetings": meetings.count, "meetings_refused": meetings.refused},
            "sessions": [
                {"number": number, "counters": stats.get("session", {}), "refused": stats.get("refused", {})}
                for number, stats in found.items()
                if number in wanted
            ],
            "devices": [device_stats(entry, found.get(entry.session, {})) for entry in entries],
        }

    async def detach(self, name: str) -> dict[str, Any]:
        """End the session that has the device, to the end of its teardown, and withhold the device."""
        entry = self._entry(name)
        session = self._session_of(entry)
        entry.detached = True
        steps: list[dict[str, str]] = []
        number = None
        if session is not None:
            number = session.number
            session.end(Error.GONE)
            with trio.move_on_after(DETACH_SECONDS) as deadline:
                await session.over.wait()
            if deadline.cancelled_caught:
                text = f"session {number} is not torn down after {DETACH_SECONDS:g} s; {name} is withheld all the same"
                raise ControlError(Code.TIMEOUT, text)
            steps = [
                {"step": s.name, "device": s.device, "result": s.result, "problem": s.problem} for s in session.steps
            ]
        return {"name": name, "session": number, "steps": steps}

    async def attach(self, name: str) -> dict[str, Any]:
        """Offer a detached device again."""
        entry = self._entry(name)
        if not entry.detached:
            raise ControlError(Code.WRONG_STATE, f"{name} is not detached: it is {state_of(entry)}")
        entry.detached = False
        return {"name": name}


def state_of(entry: Entry) -> str:
    """One word or two for the state of a device."""
    if entry.session:
        return "in session"
    if entry.quarantined:
        return "quarantined"
    return "detached" if entry.detached else "free"


def device_stats(entry: Entry, stats: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of one device, from what its session's worker said."""
    mine: Mapping[str, Any] = next(
        (device for device in stats.get("devices", ()) if device.get("name") == entry.name), {}
    )
    return {"name": entry.name, "counters": mine.get("counters", {}), "refused": mine.get("refused", {})}
