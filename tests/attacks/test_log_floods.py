# SPDX-License-Identifier: MIT
"""What fronts cause in the log is limited by uid: it grows no faster, and hides nobody else's (A7)."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcisplit.back.log import LINES_PER_SECOND, PeerLog
from tests.conftest import Backend

OTHER = 61235
DEADLINE = 30.0


def lines_of(log: list[dict[str, Any]], uid: int) -> list[dict[str, Any]]:
    return [line for line in log if line.get("uid") == uid]


def knock(path: Path, times: int, uid: int) -> None:
    """So many connections with a hello that is none, of that uid, in a process of its own."""
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            for _ in range(times):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    sock.settimeout(DEADLINE)
                    sock.connect(str(path))
                    sock.send(b"no hello")
                    sock.recv(4096)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.clause("THR-7")
def test_sessions_are_limited_too_and_what_is_left_out_is_told(make_backend: Callable[..., Backend]) -> None:
    """Opening and closing in a loop, one session after another, as fast as it goes."""
    backend = make_backend("--device", "ram0=model:ram", "--dma", "1M", "--log-lines", "2")
    began, sessions = time.monotonic(), 0
    while sessions < 40 or time.monotonic() - began < 2:
        with backend.connect(wait=DEADLINE, dma=0):
            sessions += 1
    with backend.connect(wait=DEADLINE, dma=0):
        seconds = time.monotonic() - began
    own = [line for line in lines_of(backend.log, os.getuid()) if line["event"] != "log lines left out"]
    assert len(own) <= 2 * (seconds + 2)
    left_out, deadline = 0, time.monotonic() + DEADLINE
    while (
        left_out < 2 * sessions - len(own) and time.monotonic() < deadline
    ):  # the last second's are told by a later line
        with backend.connect(wait=DEADLINE, dma=0):
            left_out = sum(line["count"] for line in backend.log if line["event"] == "log lines left out")
    assert left_out >= 2 * sessions - len(own)
    assert left_out > 0


@pytest.mark.clause("THR-7")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has two uids")
def test_one_uids_refusals_do_not_hide_anothers(make_backend: Callable[..., Backend]) -> None:
    backend = make_backend("--device", "ram0=model:ram", "--dma", "1M", "--log-lines", str(LINES_PER_SECOND))
    for folder in (backend.folder, *backend.folder.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    backend.path.chmod(0o666)
    knock(backend.path, 300, OTHER)
    knock(backend.path, 1, OTHER + 1)
    knock(backend.path, 100, OTHER)
    backend.wait_log("refused")
    refused = Counter(line["uid"] for line in backend.log if line["event"] == "refused")
    assert refused[OTHER + 1] == 1
    assert 0 < refused[OTHER] < 400


@pytest.mark.clause("THR-7")
def test_a_thousand_uids_are_remembered_and_no_more() -> None:
    log = PeerLog(1)
    for uid in range(3 * PeerLog.UIDS):
        log(uid, "line")
    assert len(log._uids) == PeerLog.UIDS
