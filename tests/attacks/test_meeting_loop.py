# SPDX-License-Identifier: MIT
"""Somebody who connects and closes in a loop does not keep others from meeting (A6)."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable

import pytest

from pcisplit.back.supervisor.sockets import BACKLOG
from tests.conftest import Backend

MEETINGS = 300
LOOPS = 2


def test_the_backlog() -> None:
    assert BACKLOG == 128


def _loop(path: str) -> None:
    """The life of the attacker."""
    signal.alarm(300)
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, contextlib.suppress(OSError):
            sock.connect(path)


@pytest.mark.slow
@pytest.mark.clause("MEET-22", "MEET-23")
def test_polite_fronts_meet_beside_a_connect_loop(make_backend: Callable[..., Backend]) -> None:
    """Each of 300 gets its session with the default front, which waits in line for room in the backlog."""
    backend = make_backend("--device", "ram0=model:ram", "--dma", "1M")
    attackers = []
    try:
        for _ in range(LOOPS):
            if (pid := os.fork()) == 0:
                try:
                    if os.geteuid() == 0:
                        os.setuid(1)  # the limit of meetings of a uid is its own [MEET-14]
                    _loop(str(backend.path))
                finally:
                    os._exit(1)
            attackers.append(pid)
        for _ in range(MEETINGS):
            with backend.connect(wait=60.0, dma=0) as session:
                assert session.devices
    finally:
        for pid in attackers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
