# SPDX-License-Identifier: MIT
"""A control server over a source that tests script, on a real socket, in a thread; and a raw client for it."""

import contextlib
import io
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
import trio

from pcisplit.back.control_protocol import ControlError
from pcisplit.back.log import configure
from pcisplit.back.supervisor.control import ControlServer, Limits, control_socket

DEADLINE = 20.0
HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]ixy\r\nsession over \u202e"

#: Identity of QEMU's e1000e, a capability list with power management and MSI, one 4 KiB space.
CONFIG = bytearray(4096)
CONFIG[0x00:0x10] = bytes.fromhex("8680d310 07001000 00000002 00000000")
CONFIG[0x10:0x14] = bytes.fromhex("0000c0fe")
CONFIG[0x34] = 0xC8
CONFIG[0xC8:0xD0] = bytes.fromhex("01d022c8 00200000")
CONFIG[0xD0:0xD4] = bytes.fromhex("05008000")


class FakeSource:
    """Two devices, one session. ``block`` makes a command wait until ``free``; `calls` is what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.driver = "ixy"
        self.detached: set[str] = set()
        self.problem: Exception | None = None
        self.extra: dict[str, Any] = {}
        self.entered = threading.Event()
        self._gates: dict[str, trio.Event] = {}

    def block(self, do: str) -> trio.Event:
        """From any thread, before the command is asked; set the event inside trio (``Running.free``)."""
        self._gates[do] = trio.Event()
        return self._gates[do]

    async def _enter(self, do: str, *arguments: Any) -> None:
        self.calls.append((do, *arguments))
        if self.problem:
            raise self.problem
        if do in self._gates:
            self.entered.set()
            await self._gates[do].wait()

    def _check(self, name: str) -> None:
        if name not in ("nic0", "edu0"):
            raise ControlError("unknown_device", f"no device {name!r} is served; there are nic0, edu0")

    def _state(self, name: str) -> str:
        return "detached" if name in self.detached else "in session" if name == "nic0" else "free"

    async def list(self) -> dict[str, Any]:
        await self._enter("list")
        busy = "nic0" not in self.detached
        counters = {"requests": 1234567, "responses": 1234560, "refused": 7, "kicks": 89, "empty_kicks": 0}
        session = {
            "number": 3, "uid": 1000, "pid": 4242, "driver": self.driver, "devices": ["nic0"], "state": "connected",
            "since": 1_700_000_000.0, "worker_pid": 4250, "counters": counters,
        }  # fmt: skip
        devices = [
            {"name": "nic0", "spec": "0000:03:00.0", "group": "iommu 14", "state": self._state("nic0"),
             "session": 3 if busy else None, "quarantined": ""},
            {"name": "edu0", "spec": "model:edu", "group": "edu0", "state": self._state("edu0"),
             "session": None, "quarantined": ""},
        ]  # fmt: skip
        supervisor = {"version": "0.1.0", "pid": 4200, "socket": "/run/pcisplit/socket", "started": 1_700_000_000.0}
        return {"supervisor": supervisor, "devices": devices, "sessions": [session] if busy else [], **self.extra}

    async def dump(self, name: str, hardware: bool) -> dict[str, Any]:
        await self._enter("dump", name, hardware)
        self._check(name)
        octets = CONFIG if hardware or name == "nic0" else CONFIG[:256]
        bdf = "0000:03:00.0" if name == "nic0" else "0000:00:00.0"
        note = "" if name == "nic0" else "the device is free: what its next front will see"
        return {"name": name, "spec": "", "bdf": bdf, "octets": octets.hex(), "note": note, **self.extra}

    async def stats(self, name: str | None) -> dict[str, Any]:
        await self._enter("stats", name)
        if name is not None:
            self._check(name)
        counters = {"requests": 1234567, "refused": 7, "owner_us": 1500, "slices": 12}
        session = {"number": 3, "counters": counters, "refused": {"bar": 5, "command": 2}}
        device = {"name": "nic0", "counters": counters, "refused": {}}
        supervisor = {"sessions": 1, "meetings_refused": 2} if name is None else {}
        return {"supervisor": supervisor, "sessions": [session], "devices": [device], **self.extra}

    async def detach(self, name: str) -> dict[str, Any]:
        await self._enter("detach", name)
        self._check(name)
        self.detached.add(name)
        steps = [
            {"step": "bus master off", "device": "0000:03:00.0", "result": "done", "problem": ""},
            {"step": "reset", "device": "0000:03:00.0", "result": "flr", "problem": ""},
            {"step": "unmap", "device": "", "result": "", "problem": "EBUSY"},
        ]
        return {"name": name, "session": 3 if name == "nic0" else None, "steps": steps if name == "nic0" else []}

    async def attach(self, name: str) -> dict[str, Any]:
        await self._enter("attach", name)
        self._check(name)
        if name not in self.detached:
            raise ControlError("wrong_state", f"{name} is not detached; pcisplit list tells its state")
        self.detached.remove(name)
        return {"name": name}


class Running:
    """The server in its thread."""

    def __init__(self, source: FakeSource, path: Path) -> None:
        self.source, self.path = source, path
        self.scope, self.written = trio.CancelScope(), io.StringIO()
        self.token: trio.lowlevel.TrioToken

    def stop(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self.token.run_sync_soon(self.scope.cancel)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written.getvalue().splitlines()]

    def free(self, gate: trio.Event) -> None:
        self.token.run_sync_soon(gate.set)

    def client(self, receive: int = 0) -> "RawClient":
        return RawClient(self.path, receive)


@contextlib.contextmanager
def control_backend(folder: Path, limits: Limits | None = None) -> Iterator[Running]:
    """A control server in `folder` on a socket; it must end by itself, and cleanly, at the end."""
    folder.chmod(0o750)
    running = Running(FakeSource(), folder / "control")
    configure(json=True, stream=running.written)
    ready = threading.Event()
    failures: list[BaseException] = []

    async def main() -> None:
        running.token = trio.lowlevel.current_trio_token()
        with control_socket(running.path) as sock, running.scope:
            ready.set()
            await ControlServer(running.source, limits).run(sock)

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as problem:
            failures.append(problem)
        finally:
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(DEADLINE) and not failures, failures
    try:
        yield running
    finally:
        running.stop()
        thread.join(DEADLINE)
        structlog.reset_defaults()
        assert not thread.is_alive(), "the server does not end"
        assert not failures, failures
        assert not running.path.exists()


class RawClient:
    """Octets in, lines out. `receive` is the size of its receive buffer, 0 for the usual one."""

    def __init__(self, path: Path, receive: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(DEADLINE), 0))
        if receive:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.sock.connect(str(path))
        self.sock.settimeout(DEADLINE)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, do: str, **arguments: Any) -> None:
        self.send(json.dumps({"pcisplit": 1, "id": do, "do": do, **arguments}).encode() + b"\n")

    def line(self) -> dict[str, Any] | None:
        """The next answer, None at the end."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.ask(do, **arguments)
        line = self.line()
        assert line is not None
        return line

    def refusal(self) -> str:
        """The code of the next answer, which must be a refusal with a sentence."""
        line = self.line()
        assert line is not None and line["ok"] is False and len(line["error"]["text"]) > 10, line
        return str(line["error"]["code"])
