# SPDX-License-Identifier: MIT
"""The control commands against a real backend: while its session is busy, while an owner is inside of a slow reset."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcisplit import pci
from pcisplit.front import Session
from pcisplit.proto.errors import AccessError, MeetingRefused, SessionGone
from pcisplit.wire import Error
from tests.conftest import Backend

SLOW = ("--device", "edu0=model:edu,reset_ms=60000", "--device", "ram0=model:ram", "--dma", "4M")


@pytest.fixture
def operated(make_backend: Callable[..., Backend], tmp_path: Path) -> Backend:
    """A backend with a control socket and a device whose reset takes a minute."""
    (tmp_path / "operator").mkdir(mode=0o750)
    return make_backend(*SLOW, "--control", str(tmp_path / "operator" / "control"))


def ask(backend: Backend, *command: str, code: int = 0) -> str:
    """What ``pcisplit`` prints for a control command."""
    control = backend.folder.parent / "operator" / "control"
    done = subprocess.run(
        [sys.executable, "-m", "pcisplit", command[0], "--control", str(control), *command[1:]],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def ask_json(backend: Backend, *command: str) -> Any:
    return json.loads(ask(backend, *command, "--json"))


class Busy:
    """Keeps a session busy from a thread of its own, until the block ends."""

    def __init__(self, session: Session) -> None:
        self._registers = session.acquire("ram0").bar(0)
        self._stop = threading.Event()
        self.reads = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._registers.read32(0)
            self.reads += 1

    def __enter__(self) -> "Busy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)


def test_list_stats_and_dump_while_the_session_is_busy(operated: Backend) -> None:
    with operated.connect(dma_bits=28) as session:
        session.acquire("ram0").config.write16(pci.COMMAND, pci.COMMAND_MEM)
        with pytest.raises(AccessError):
            session.acquire("ram0").config.write16(pci.VENDOR_ID, 0)
        with Busy(session) as busy:
            listed = ask_json(operated, "list")
            assert [device["state"] for device in listed["devices"]] == ["in session", "in session"]
            (one,) = listed["sessions"]
            assert one["devices"] == ["edu0", "ram0"] and one["state"] == "connected"
            assert one["worker_pid"] in operated.workers()
            counted = ask_json(operated, "stats", "ram0")
            assert counted["devices"][0]["refused"] == {"ids": 1}
            dumped = bytes.fromhex(ask_json(operated, "dump", "ram0")["octets"])
            truth = bytes.fromhex(ask_json(operated, "dump", "ram0", "--hardware")["octets"])
            before = busy.reads
        assert busy.reads > before or before > 0
        assert dumped[:4] == truth[:4] == bytes.fromhex("f41aff10")
        assert dumped[pci.COMMAND] == pci.COMMAND_MEM
        assert dumped[pci.BAR0 : pci.BAR0 + 4] != truth[pci.BAR0 : pci.BAR0 + 4], "a front sees virtual addresses"


def test_while_an_owner_is_inside_of_a_slow_reset(operated: Backend) -> None:
    """Whoever needs that owner is told what it is inside of; the others are answered; detach ends the session all the same."""
    session = operated.connect(dma_bits=28, timeout=100)
    resetting = threading.Thread(target=_reset, args=(session,), daemon=True)
    resetting.start()
    while ask_json(operated, "stats", "edu0")["devices"][0]["counters"]["requests"] == 0:
        pass
    assert "edu0" in ask(operated, "list")
    assert "inside of reset" in ask(operated, "dump", "edu0", code=1)
    assert len(bytes.fromhex(ask_json(operated, "dump", "ram0")["octets"])) == 256
    detached = ask_json(operated, "detach", "edu0")
    assert any("does not come back from reset" in step["problem"] for step in detached["steps"])
    resetting.join(20)
    assert not resetting.is_alive()
    session.close()
    states = {device["name"]: device["state"] for device in ask_json(operated, "list")["devices"]}
    assert states == {"edu0": "detached", "ram0": "free"}


def _reset(session: Session) -> None:
    with pytest.raises((SessionGone, AccessError)):
        session.acquire("edu0").reset()


def test_a_detached_device_is_not_met_until_it_is_attached(operated: Backend) -> None:
    with operated.connect(devices=["ram0"], dma=0) as session:
        ask(operated, "detach", "ram0")
        with pytest.raises(SessionGone) as gone:
            while True:
                session.acquire("ram0").config.read16(0)
        assert gone.value.reason is Error.GONE
    with pytest.raises(MeetingRefused, match="detached by the operator"):
        operated.connect(devices=["ram0"], dma=0)
    assert "is not detached" in ask(operated, "attach", "edu0", code=1)
    ask(operated, "attach", "ram0")
    with operated.connect(devices=["ram0"], dma=0) as session:
        assert session.acquire("ram0").vendor == 0x1AF4


def test_lspci_decodes_what_a_front_sees(operated: Backend, tmp_path: Path) -> None:
    if shutil.which("lspci") is None:
        pytest.skip("lspci is not installed: apt-get install pciutils")
    with operated.connect(devices=["ram0"], dma=0):
        (tmp_path / "seen").write_text(ask(operated, "dump", "ram0"))
    done = subprocess.run(["lspci", "-vvF", str(tmp_path / "seen")], capture_output=True, text=True, check=True)
    assert "MSI-X: Enable- Count=4" in done.stdout
