# SPDX-License-Identifier: MIT
"""Attacks that need a machine of their own: two uids beside root, and a commit limit that is used up."""

from __future__ import annotations

import ctypes
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pcisplit.proto.meeting import Hello, Need, parse_reply_untrusted
from pcisplit.wire import MAX_FDS, Error

from .check import clause
from .serving import SECONDS, Serving, alive, tree

DEVICES: list[str] = []

EVIL, POLITE, GROUP = 60001, 60002, 60100
_PUNCH = 3  #: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h

_backends: list[Serving] = []
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def setup() -> None:
    """One backend with a device for each front, and a uid for each worker."""
    devices = [f"edu0=model:edu,uid={EVIL}", f"ram0=model:ram,uid={POLITE}"]
    _backends.append(Serving(devices, "--dma", "1M", "--worker-uids", "70000-70009", gid=GROUP).ready())


class Front:
    """A front of another uid, in a process of its own, which does one thing after another when it is told to."""

    def __init__(self, uid: int, life: Callable[[], Iterator[object]]) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(SECONDS)
        if (pid := os.fork()) == 0:
            self._sock.close()
            code = 1
            try:
                os.setgroups([])
                os.setresgid(GROUP, GROUP, GROUP)
                os.setresuid(uid, uid, uid)
                for _ in life():
                    theirs.send(b"done")
                    theirs.recv(16)
                theirs.send(b"over")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        self.pid = pid

    def wait(self) -> None:
        """Until it has done the next thing. AssertionError: it failed."""
        assert self._sock.recv(16), "the front failed, see above"

    def go(self) -> None:
        self._sock.send(b"go")


def _punching() -> Iterator[object]:
    """A meeting; every page of f2b punched out, before anything is said; then a kick, at which the back looks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(SECONDS)
        sock.connect(str(_backends[0].path))
        sock.send(Hello("evil", (Need("edu0", 0),), 0, 64).to_bytes())
        data, fds, _, _ = socket.recv_fds(sock, 1 << 18, MAX_FDS)
        reply = parse_reply_untrusted(data)
        assert reply.error is Error.SUCCESS, reply.text
        assert _libc.fallocate(fds[0], _PUNCH, 0, os.fstat(fds[0]).st_size) == 0, os.strerror(ctypes.get_errno())
        yield None
        os.eventfd_write(fds[2], 1)
        while sock.recv(1 << 18):
            pass


def _polite() -> Iterator[object]:
    """A session that reads whenever it may."""
    with _backends[0].connect("ram0", dma=0) as session:
        device = session.acquire("ram0")
        for _ in range(3):
            assert all(device.config.read16(0) == 0x1AF4 for _ in range(100))
            yield None


@contextmanager
def _no_memory_left() -> Iterator[None]:
    """The commit limit of the machine is used up: no page of shared memory can come that is not there."""
    vm = Path("/proc/sys/vm")
    ratio = (vm / "overcommit_ratio").read_text()
    (vm / "overcommit_kbytes").write_text("1")
    (vm / "overcommit_memory").write_text("2")
    try:
        yield
    finally:
        (vm / "overcommit_memory").write_text("0")
        (vm / "overcommit_ratio").write_text(ratio)


@clause("REG-6", "THR-3")
def check_a_page_that_does_not_come_back_ends_its_own_session() -> None:
    """SIGBUS in the worker is an end with ``faulted``; another uid's session goes on meanwhile, and is served afterwards."""
    backend = _backends[0]
    polite = Front(POLITE, _polite)
    polite.wait()
    since = len(backend.log)
    evil = Front(EVIL, _punching)
    evil.wait()
    with _no_memory_left():
        evil.go()
        polite.go()
        polite.wait()
        evil.wait()  # its socket is closed
    over = backend.wait_log("session over", since)
    print(over)
    assert over["reason"] == "faulted", over
    for _ in range(2):
        polite.go()
        polite.wait()
    again = Front(POLITE, _polite)
    again.wait()
    assert alive(backend.pid) and len(tree(backend.pid)) >= 3


def check_backend_ends_well() -> None:
    """SIGTERM ends it with 0."""
    _backends[0].stop()
