# SPDX-License-Identifier: MIT
"""Somebody who connects and closes in a loop does not keep others from meeting (A6)."""

import mmap
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcisplit.back.supervisor.sockets import BACKLOG
from tests.conftest import Backend

MEETINGS = 300
LOOPS = 2


def test_the_backlog() -> None:
    assert BACKLOG == 128


def _loop(path: str, connected: mmap.mmap) -> None:
    """The life of an attacker, who counts."""
    signal.alarm(300)
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
        connected[:8] = (int.from_bytes(connected[:8], "little") + 1).to_bytes(8, "little")


@pytest.fixture
def reachable() -> Iterator[Backend]:
    """A backend that another uid of our group can reach, as it cannot where pytest keeps its files."""
    with tempfile.TemporaryDirectory(prefix="pcisplit-") as name:
        folder = Path(name)
        folder.chmod(0o750)
        backend = Backend(folder, "--device", "ram0=model:ram", "--dma", "1M")
        yield backend
        backend.stop()


@pytest.mark.slow
@pytest.mark.clause("MEET-22", "MEET-23")
def test_polite_fronts_meet_beside_a_connect_loop(reachable: Backend) -> None:
    """Each of 300 gets its session with the default front, which waits in line for room in the backlog."""
    attackers, counters = [], [mmap.mmap(-1, 4096) for _ in range(LOOPS)]
    try:
        for connected in counters:
            if (pid := os.fork()) == 0:
                try:
                    if os.geteuid() == 0:
                        os.setuid(1)  # the limit of meetings of a uid is its own [MEET-14]
                    _loop(str(reachable.path), connected)
                finally:
                    os._exit(1)
            attackers.append(pid)
        for _ in range(MEETINGS):
            with reachable.connect(wait=60.0, dma=0) as session:
                assert session.devices
        for connected in counters:
            assert int.from_bytes(connected[:8], "little") > MEETINGS, "the attackers did nothing"
    finally:
        for pid in attackers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
