# SPDX-License-Identifier: MIT
"""Listening UNIX sockets: the directory they lie in, what an earlier backend left there, who may connect, who did."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import trio

from pcisplit.back.supervisor.registry import Peer

#: Connections that may wait to be accepted; a front retries a full backlog until its deadline [MEET-22].
BACKLOG = 128
_GROUP = stat.S_IRWXG


@contextlib.contextmanager
def listening(path: Path, kind: int = socket.SOCK_SEQPACKET, mode: int = 0o660) -> Iterator[socket.socket]:
    """A listening, non-blocking UNIX socket of `kind` at `path` with `mode`, removed afterwards. Raises OSError, ValueError.

    A mode with group bits gives the socket to the group of its directory: whoever may look into the directory may knock.
    """
    make_directory(path.parent)
    with _locked(path), socket.socket(socket.AF_UNIX, kind) as sock:
        remove_stale(path, kind)
        sock.bind(str(path))
        try:
            path.chmod(mode)  # before listen: until then every connect is refused, whatever the umask left open
            if mode & _GROUP:
                with contextlib.suppress(PermissionError):
                    os.chown(path, -1, path.parent.stat().st_gid)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            yield sock
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Whoever has the lock beside a socket has the socket: two that start at once do not both take it for stale. ValueError."""
    name = path.with_name(f".{path.name}.lock")
    while True:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if name.exists() and os.fstat(lock).st_ino == name.stat().st_ino:
                break  # and not one that was removed while we waited for it
        except BlockingIOError:
            os.close(lock)
            raise ValueError(f"another backend listens at {path}; stop it or choose another path") from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    try:
        yield
    finally:
        name.unlink(missing_ok=True)
        os.close(lock)


def make_directory(folder: Path) -> None:
    """The socket's directory, made if it is not there, refused if others may look into it [MEET-1]. Raises ValueError."""
    if not folder.exists():
        folder.mkdir(mode=0o750, parents=True)
        folder.chmod(0o750)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        text = f"the socket's directory {folder} has mode {mode:04o}, so others may reach the socket"
        raise ValueError(f"{text}; use a directory of its own (chmod 0750), such as /run/pcisplit")


def remove_stale(path: Path, kind: int = socket.SOCK_SEQPACKET) -> None:
    """Remove a socket that nobody listens at any more. Raises ValueError when somebody does or it is no socket."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ValueError(f"{path} is there and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)  # a full backlog is somebody too
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as problem:
            if problem.errno not in (errno.EAGAIN, errno.EPROTOTYPE):  # backlog full; a socket of another kind listens
                raise
    raise ValueError(f"another backend listens at {path}; stop it or choose another path")


def peer_of(connection: trio.socket.SocketType) -> Peer:
    """Who connected, as the kernel says."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", raw))
