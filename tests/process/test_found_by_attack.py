# SPDX-License-Identifier: MIT
"""What somebody found who attacked the processes: each ended the backend, or went on for ever, before it was mended."""

import errno
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from pcisplit import wire
from pcisplit.back.patient import LINES, PatientStream
from pcisplit.back.supervisor import meeting
from pcisplit.back.supervisor.processes import Line
from pcisplit.back.supervisor.registry import SESSIONS_PER_UID, Peer, Registry
from pcisplit.back.supervisor.sockets import listening
from pcisplit.back.supervisor.specs import make_server
from pcisplit.proto.errors import DeviceError, MeetingRefused, RemoteProtocolError
from pcisplit.proto.meeting import Need
from pcisplit.wire import Error
from tests.conftest import DEADLINE, Backend


@pytest.mark.clause("THR-3")
def test_however_many_processes_end_in_a_second_the_zygote_is_not_cut_off(backend: Backend) -> None:
    """Sessions that begin and end as fast as they can: each is news of the zygote that nobody asked for."""
    line_most, seen = Line.MOST_PER_SECOND, 0

    async def news() -> None:
        nonlocal seen
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line = Line(ours, "the zygote", ours=True)

        def hear(_: object) -> None:
            nonlocal seen
            seen += 1

        line.listeners["exited"] = hear
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            out = trio.socket.from_stdlib_socket(theirs)
            theirs.setblocking(False)
            for _ in range(3 * line_most):
                await out.send(b'{"tell":"exited","pid":1,"status":0}')
            out.close()
            await line.gone.wait()
        line.close()
        assert line.problem == ""

    trio.run(news)
    assert seen == 3 * line_most


def test_a_hello_that_no_model_can_meet_begins_nothing(make_backend: Callable[..., Backend]) -> None:
    """Refused before a process is forked; a model without reset is not quarantined for it."""
    backend = make_backend("--device", "ram0=model:ram,reset=no")
    for _ in range(3):
        with pytest.raises(MeetingRefused) as refused:
            backend.connect(devices=[Need("ram0", 9)], dma=0)
        assert refused.value.code is Error.TOO_MANY_VECTORS
    assert backend.workers(0) == []
    with backend.connect(devices=["ram0"], dma=0) as session:
        assert session.acquire("ram0").vendor == 0x1AF4


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.EMFILE])
def test_what_the_kernel_has_against_one_message_is_not_the_end_of_the_channel(number: int) -> None:
    async def ask() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line = Line(ours, "the zygote", ours=True)

        class Refusing:
            async def sendmsg(self, *_: object) -> None:
                raise OSError(number, os.strerror(number))

        line._end, end = Refusing(), line._end  # type: ignore[assignment]
        with pytest.raises(DeviceError) as refused:
            await line.ask("fork", 1.0)
        assert refused.value.code is Error.QUOTA
        assert not line.gone.is_set()
        line._end = end
        line.close()
        theirs.close()

    trio.run(ask)


@pytest.mark.clause("THR-4")
@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the kernel's own way is for x86-64; elsewhere poll comes first"
)
def test_a_jailed_worker_signals_by_the_kernel_itself(make_backend: Callable[..., Backend], tmp_path: Path) -> None:
    """An AIO context belongs to an address space: one that the zygote made is none in a worker."""
    backend = make_backend("--device", f"edu0=model:edu,tender={os.getuid()}", "--dma", "1M")
    need = Need("edu0", 1, wire.VectorMode.DIRECT)
    with backend.connect(devices=[need], dma_bits=28) as session:
        (worker,) = backend.workers(1)
        assert "/[aio] (deleted)" in Path(f"/proc/{worker}/maps").read_text()
        edu = session.acquire("edu0")
        edu.config.write16(4, 6)
        edu.irq(0).enable()
        edu.bar(0).write32(0x60, 1)
        assert edu.irq(0).wait(timeout=DEADLINE) == 1


class Reader(io.StringIO):
    """A stream whose reader stalls until told, and may be gone then."""

    def __init__(self) -> None:
        super().__init__()
        self.stalls, self.reads, self.gone = threading.Event(), threading.Event(), False

    def write(self, text: str) -> int:
        self.stalls.set()
        assert self.reads.wait(DEADLINE)
        if self.gone:
            raise BrokenPipeError(errno.EPIPE, "nobody reads")
        return super().write(text)


@pytest.mark.parametrize("gone", [False, True])
def test_a_log_whose_reader_stalls_or_is_gone_holds_up_nobody(gone: bool) -> None:
    reader = Reader()
    patient = PatientStream(reader)
    patient.write("0\n")
    assert reader.stalls.wait(DEADLINE)
    for number in range(1, 2 * LINES):
        patient.write(f"{number}\n")
    assert patient._left_out == LINES - 1
    reader.gone = gone
    reader.reads.set()
    patient.drain(DEADLINE)
    patient.write("once more\n")
    patient.drain(DEADLINE)
    assert not patient._lines.unfinished_tasks
    said = reader.getvalue().splitlines()
    assert said == [] if gone else said[0] == "0" and "left out" in said[-2] and said[-1] == "once more"


def test_serve_goes_on_when_whoever_read_its_log_has_gone(tmp_path: Path) -> None:
    folder = tmp_path / "meeting"
    folder.mkdir(mode=0o750)
    command = [sys.executable, "-m", "pcisplit", "serve", "--device", "ram0=model:ram", "--socket", str(folder / "s")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        import pcisplit.front

        for _ in range(3):
            with pytest.raises(MeetingRefused):
                pcisplit.front.connect(folder / "s", devices=["nobody"], wait=DEADLINE)
        with pcisplit.front.connect(folder / "s", dma=0, wait=DEADLINE) as session:
            assert session.acquire("ram0").vendor == 0x1AF4
        process.terminate()
        assert process.wait(DEADLINE) == 0


def test_of_several_that_find_a_stale_socket_one_gets_it(tmp_path: Path) -> None:
    folder = tmp_path / "meeting"
    folder.mkdir(mode=0o750)
    path, winners, losers = folder / "s", [], []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    start, done = threading.Barrier(8), threading.Event()

    def serve() -> None:
        start.wait()
        try:
            with listening(path) as sock:
                winners.append(sock)
                done.wait(DEADLINE)
        except ValueError as problem:
            losers.append(str(problem))

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(winners) + len(losers) < 8:
        os.sched_yield()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as front:
        front.connect(str(path))
    done.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(winners) == 1 and all("another backend listens" in text for text in losers)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give workers uids")
def test_a_front_has_no_workers_uid(tmp_path: Path) -> None:
    with socket.socket() as zygote, pytest.raises(ValueError, match="uid 2001 is a front's"):
        make_server(["a=model:ram,uid=2001"], tmp_path / "s", 0, zygote, worker_uids=range(2000, 2011))


@pytest.mark.clause("THR-19", "MEET-14")
def test_what_does_not_die_counts_against_the_uid_of_its_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front may keep a process asleep in the kernel; it pays for it with one of its places until that is dead."""
    monkeypatch.setattr(meeting, "_DEAD_SECONDS", 0.0)
    registry, peer = Registry([], 0, os.getuid()), Peer(1, 1000, 1000)

    class Left:
        unclean: tuple[()] = ()

        def __init__(self) -> None:
            self.dead = trio.Event()

        async def processes_dead(self) -> None:
            await self.dead.wait()

    async def bury() -> None:
        async with trio.open_nursery() as nursery:
            meetings = meeting.Meetings(registry, None, nursery)  # type: ignore[arg-type]  # nothing is met
            left = [Left() for _ in range(SESSIONS_PER_UID)]
            for one in left:
                await meetings._bury(one, peer)  # type: ignore[arg-type]
            with pytest.raises(RemoteProtocolError):
                registry.enter(peer)
            left[0].dead.set()
            await trio.testing.wait_all_tasks_blocked()
            registry.enter(peer)
            registry.leave(peer)
            for one in left:
                one.dead.set()
        assert not registry._held

    trio.run(bury)


def test_a_worker_has_nothing_of_the_operators_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root sees what an undumpable process holds")
    monkeypatch.setenv("PCISPLIT_SECRET_OF_THE_OPERATOR", "hunter2hunter2")
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    backend = Backend(folder, "--device", "ram0=model:ram")
    try:
        with backend.connect(dma=0):
            (worker,) = backend.workers(1)
            assert b"hunter2" not in Path(f"/proc/{worker}/environ").read_bytes()
            assert b"hunter2" in Path(f"/proc/{backend.process.pid}/environ").read_bytes()
    finally:
        backend.stop()


def test_a_log_that_was_closed_costs_no_descriptor(tmp_path: Path) -> None:
    """It cost one a line, until select() and then open() of the whole process failed."""
    with (tmp_path / "log").open("w") as stream:
        patient = PatientStream(stream)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        patient.write("lost\n")
    patient.drain(DEADLINE)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
