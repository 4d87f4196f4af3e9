# SPDX-License-Identifier: MIT
"""Listening sockets: their directory, their rights, and the ones that a dead backend left behind."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

#: Connections that may wait to be accepted; a front retries a full backlog until its deadline [MEET-22].
BACKLOG = 128


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening SOCK_SEQPACKET socket at `path`, removed afterwards."""
    make_directory(path.parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        remove_stale(path)
        sock.bind(str(path))
        try:
            path.chmod(0o660)
            with contextlib.suppress(PermissionError):  # whoever may look into the directory may knock
                os.chown(path, -1, path.parent.stat().st_gid)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            yield sock
        finally:
            path.unlink(missing_ok=True)


def make_directory(folder: Path) -> None:
    """The socket's directory, made if it is not there, refused if others may look into it [MEET-1]. Raises ValueError."""
    if not folder.exists():
        folder.mkdir(mode=0o750, parents=True)
        folder.chmod(0o750)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        text = f"the socket's directory {folder} has mode {mode:04o}, so others may reach the socket"
        raise ValueError(f"{text}; use a directory of its own (chmod 0750), such as /run/pcisplit")


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at any more. Raises ValueError when somebody does or it is no socket."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ValueError(f"{path} is there and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ValueError(f"another backend listens at {path}; stop it or choose another path")
