# SPDX-License-Identifier: MIT
"""A front that seals f2b itself, so that the back cannot: its own session ends, and no other."""

import fcntl
import socket

import pytest

from pcisplit.front import Session
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.errors import SessionGone
from pcisplit.proto.meeting import Hello, Need, parse_reply_untrusted
from pcisplit.wire import MAX_FDS
from tests.conftest import Backend

F_ADD_SEALS, F_SEAL_SEAL = 1033, 1


@pytest.mark.clause("THR-3", "REG-3")
def test_a_front_that_forbids_further_seals(backend: Backend) -> None:
    """The refusal of the sealer was an exception group out of the reader of the worker's channel, and ended the backend."""
    with backend.connect(devices=["ram0"]) as other:
        sock = backend.raw()
        sock.send(Hello("evil", (Need("edu0", 0),), 0, 64).to_bytes())
        data, fds, _, _ = socket.recv_fds(sock, 1 << 18, MAX_FDS)
        reply = parse_reply_untrusted(data)
        try:
            fcntl.fcntl(fds[0], F_ADD_SEALS, F_SEAL_SEAL)
        except PermissionError:
            pytest.skip("f2b comes with F_SEAL_SEAL")
        sock.setblocking(False)
        with pytest.raises(SessionGone):
            Session(sock, parse_boot_info_untrusted(reply.boot_info), reply.boot_info, fds, 20.0)
        sock.close()
        over = backend.wait_log("session over")
        assert over["reason"] == "bad_request"
        assert other.acquire("ram0").config.read16(0) == 0x1AF4
        with backend.connect(devices=["edu0"], wait=20.0) as again:
            assert again.acquire("edu0").config.read16(0) == 0x1234
