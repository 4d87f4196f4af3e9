# SPDX-License-Identifier: MIT
"""Fronts use up what the backend needs: descriptors by connecting, processes by being many (A5). No device is lost."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pcisplit.proto.errors import PcisplitError
from tests.conftest import Backend
from tests.lab.serving import Serving, alive, tree

DEADLINE = 60.0
MOST = 10  # the two of a backend, the five threads of one session's worker, and three
UID = 61234  # of nobody else, whose processes would count
ROOT = Path(__file__).parent.parent.parent

# `serve` as another user, which may have so many processes and no more; root may always have more.
_LIMITED = """
import os, resource, sys
most = int(sys.argv.pop(1))
sys.path.insert(0, {root!r})
import encodings.idna, encodings.unicode_escape
import pcisplit.cli, pcisplit.cli.serve  # while the interpreter's files can be read
import pcisplit.back.supervisor.server, pcisplit.back.supervisor.specs, pcisplit.back.supervisor.zygote as zygote
zygote._mains()
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
pcisplit.cli.main(prog_name="pcisplit")
"""


@pytest.mark.clause("THR-3", "LIFE-10")
def test_sessions_end_when_no_descriptor_is_left(make_backend: Callable[..., Backend]) -> None:
    """Teardown needs none: both devices come back, while connections hold all that there are."""
    backend = make_backend("--device", "edu0=model:edu", "--device", "ram0=model:ram", "--dma", "1M", files=48)
    sessions = [backend.connect(devices=[name]) for name in ("edu0", "ram0")]
    knocking = []
    for _ in range(100):
        try:
            knocking.append(backend.raw(0.2))
        except OSError:  # the backlog is full as well
            break
    backend.wait_log("cannot accept")
    for session in sessions:
        session.close()
    backend.wait_log("session over", 2)
    assert all(line["problems"] == 0 for line in backend.log if line["event"] == "session over")
    for sock in knocking:
        sock.close()
    for name in ("edu0", "ram0"):
        with backend.connect(devices=[name], wait=DEADLINE) as again:
            assert again.acquire(name).config.read16(0) in (0x1234, 0x1AF4)


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Serving]:
    """A backend of another uid, which may have MOST processes and threads."""
    if os.geteuid() != 0:
        pytest.skip("root can start processes of another uid, whose limit counts")
    folder = tmp_path / "run"
    folder.mkdir()
    for above in (folder, *folder.parents):
        if above.stat().st_uid == 0 and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o011)
    (folder / "meeting").mkdir()
    os.chown(folder / "meeting", UID, UID)
    program = _LIMITED.format(root=str(ROOT), uid=UID)
    command = (sys.executable, "-c", program, str(MOST))
    devices = [f"{name}=model:edu,uid=0" for name in ("edu0", "edu1", "edu2")]
    backend = Serving(devices, "--dma", "1M", folder=folder, command=command).ready()
    yield backend
    backend.stop()


@pytest.mark.clause("THR-3")
def test_sessions_are_refused_and_end_when_no_process_is_left(limited: Serving) -> None:
    """The zygote, which cannot fork any more, says so and lives; the devices come back."""
    refused = 0
    for _ in range(3):
        sessions = []
        for name in ("edu0", "edu1", "edu2"):
            try:
                sessions.append(limited.connect(name, timeout=10.0))
            except PcisplitError:
                refused += 1
        assert sessions, limited.log_path.read_text()
        for session in sessions:
            session.close()
    assert refused >= 3
    with limited.connect("edu0", wait=DEADLINE) as session:
        assert session.acquire("edu0").config.read16(0) == 0x1234
    assert alive(limited.pid) and len(tree(limited.pid)) >= 2


def limit_processes(pid: int, most: int) -> None:
    """What a process of the limited uid may have, as that uid: root may not everywhere."""
    if (child := os.fork()) == 0:
        try:
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            resource.prlimit(pid, resource.RLIMIT_NPROC, (most, MOST))
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.clause("THR-3")
def test_the_zygote_cannot_fork(limited: Serving) -> None:
    """Neither a worker nor the sealer of a session that is being opened; with room again all is as before."""
    with limited.connect("edu0", timeout=10.0) as session:
        zygote = tree(limited.pid)[1]
        limit_processes(zygote, 1)
        with pytest.raises(PcisplitError, match="no process can be forked"):
            limited.connect("edu1", timeout=10.0)
        assert session.acquire("edu0").config.read16(0) == 0x1234
    limited.wait_log("session over")
    limit_processes(zygote, MOST)
    for name in ("edu0", "edu1"):
        with limited.connect(name, wait=DEADLINE) as session:
            assert session.acquire(name).config.read16(0) == 0x1234
