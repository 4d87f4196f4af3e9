# SPDX-License-Identifier: MIT
"""The control commands on real VFIO: what a front sees and what the hardware says, resets, a device taken back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from pcisplit.proto.errors import MeetingRefused, SessionGone

from .check import bind_vfio, clause, find_device
from .serving import Serving

DEVICES = ["-drive if=none,id=d,file=null-co://,format=raw,file.size=1M", "nvme,drive=d,serial=pcisplit,addr=0x10"]

CHECK_TIMEOUT = 120.0

_backends: list[Serving] = []
_control: list[Path] = []


def setup() -> None:
    """One backend with a control socket."""
    (nvme,) = find_device(0x1B36, 0x0010)
    bind_vfio(nvme)
    folder = Path(tempfile.mkdtemp(prefix="control-", dir="/run"))
    _control.append(folder / "control")
    _backends.append(Serving([f"nvme={nvme}"], "--control", str(_control[0])).ready())


def ask(*command: str) -> str:
    """What ``pcisplit`` prints: a Python of its own, which takes seconds in an emulated guest."""
    words = [sys.executable, "-m", "pcisplit", command[0], "--control", str(_control[0]), *command[1:]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask_json(do: str, **arguments: Any) -> Any:
    """The same question on the control socket itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(100)
        sock.connect(str(_control[0]))
        sock.sendall(json.dumps({"pcisplit": 1, "id": 1, "do": do, **arguments}).encode() + b"\n")
        answer = json.loads(sock.makefile().readline())
    assert answer["ok"], answer
    return answer["result"]


def check_dump_and_stats_while_it_resets() -> None:
    """FLR takes 0.1 s in the kernel; list and stats are answered meanwhile, dump when the owner is back."""
    with _backends[0].connect("nvme", dma=0) as session:
        nvme = session.acquire("nvme")
        nvme.config.write16(4, 2)
        resetting = threading.Thread(target=nvme.reset)
        resetting.start()
        listed = ask_json("list")
        counted = ask_json("stats", name="nvme")
        seen, truth = (
            bytes.fromhex(ask_json("dump", name="nvme", hardware=hardware)["octets"]) for hardware in (False, True)
        )
        resetting.join(60)
        assert not resetting.is_alive()
        assert listed["devices"][0]["state"] == "in session"
        assert counted["devices"][0]["counters"]["requests"] >= 1
        assert seen[:4] == truth[:4] == bytes.fromhex("361b1000")
        assert len(seen) == 4096
        assert truth[4] & 2, "hardware decode is the backend's and stays on"
        assert not seen[4] & 2, "the front's MEM is off after a reset"
        assert seen[0x10:0x18] != truth[0x10:0x18] or truth[0x10:0x18] == bytes(8)
        print(ask("list"))
        (Path("/run") / "seen").write_text(ask("dump", "nvme"))
        if os.path.exists("/usr/bin/lspci"):
            told = subprocess.run(["lspci", "-vvF", "/run/seen"], capture_output=True, text=True, check=True).stdout
            print(told)
            assert "MSI-X" in told


@clause("LIFE-9", "LIFE-12")
def check_detach_and_attach() -> None:
    """Detach ends the session to the last step; the device is met again when it is attached."""
    backend = _backends[0]
    session = backend.connect("nvme", dma=1 << 20, dma_bits=64, wait=60)
    session.acquire("nvme").config.write16(4, 6)
    steps = ask_json("detach", name="nvme")["steps"]
    print(steps)
    assert [step for step in steps if step["problem"]] == []
    assert [step["result"] for step in steps if step["step"] == "reset"] == ["flr"]
    with pytest.raises(SessionGone):
        while True:
            session.acquire("nvme").config.read16(0)
    session.close()
    with pytest.raises(MeetingRefused, match="detached"):
        backend.connect("nvme", dma=0)
    ask_json("attach", name="nvme")
    with backend.connect("nvme", dma=0) as again:
        assert again.acquire("nvme").vendor == 0x1B36


def check_backend_ends_well() -> None:
    """SIGTERM ends it with 0; its control socket is gone."""
    _backends[0].stop()
    assert not _control[0].exists()
