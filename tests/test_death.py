# SPDX-License-Identifier: MIT
"""kill -9 of front, worker and supervisor at random moments, 1,000 times on models. The lab does it with VFIO (checks_death).

It runs as a program of its own, one process per backend, which forks the fronts and has no thread but one that waits.
"""

import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from pcisplit.demo.edu_driver import BUFFER, Edu
from pcisplit.proto.errors import PcisplitError
from tests.lab.check import wait_until
from tests.lab.serving import Serving, Usage, alive, tree

TIMES = 1000
LANES = 4  # backends at work at once: much of it is waiting
SECONDS = 600.0
DEADLINE = 30.0
#: Which of 20 kills hit whom; that of a supervisor costs a new backend.
KINDS = "ffffffffffwwwwwwwwws"

# `serve`, but dumpable: what an undumpable process holds is root's to see [THR-6], and this test is for everybody.
_SERVE = (
    sys.executable,
    "-c",
    "import pcisplit.back.host.harden, pcisplit.cli\n"
    "pcisplit.back.host.harden.harden = lambda: None\n"
    "pcisplit.cli.main(prog_name='pcisplit')\n",
)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.clause("LIFE-4", "LIFE-10", "LIFE-13", "DMA-1", "THR-3")
def test_killed_1000_times_at_random_moments(tmp_path: Path) -> None:
    """After each: nothing is left of it in any process, the device serves the next session, the log says who died of what."""
    lanes: list[subprocess.Popen[str]] = []
    deadline = time.monotonic() + SECONDS
    for lane in range(LANES):
        folder = tmp_path / str(lane)
        folder.mkdir()
        command = [sys.executable, "-m", "tests.test_death", str(folder), str(TIMES // LANES), str(lane)]
        lanes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=_ROOT))
    try:
        for process in lanes:
            said, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            print(said)
            assert process.returncode == 0 and "Traceback" not in said, said
    finally:
        for process in lanes:
            with process:  # waits for it
                process.kill()


_ROOT = Path(__file__).parent.parent


class Killer:
    """One backend after another, the last of which is `backend`, and what has been killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._numbers = iter(range(1 << 30))
        self.killed: dict[str, int] = {}
        self.in_dma = 0
        self.start()

    def start(self) -> None:
        """A backend, on the socket of the one before, which may have been killed."""
        self.backend = Serving(
            ["edu0=model:edu,dma_ms=5000", "ram0=model:ram"],
            *("--dma", "1M"),
            folder=self._folder,
            command=_SERVE,
            log=f"log{next(self._numbers)}",
        ).ready()
        self.since = 0
        self.life(kill=False)
        self.before = Usage.of(self.backend.pid)

    def count(self, kind: str) -> None:
        self.killed[kind] = self.killed.get(kind, 0) + 1

    def life(self, kill: bool) -> None:
        """One front, from connect to teardown; somebody is killed at a moment in it, if `kill`."""
        kind = self._random.choice(KINDS) if kill else ""
        moment = self._random.choice(("connect", "dma", "dma", "close", "any"))
        running, report = os.pipe()
        if (front := os.fork()) == 0:
            _live(self.backend, report, hold=kill and moment == "dma")
        os.close(report)
        if kill:
            self._wait_for(moment, running)
        before = tree(self.backend.pid)
        if kind == "f":
            os.kill(front, signal.SIGKILL)
        elif kind == "w":
            self._kill_worker()
        elif kind == "s":
            os.kill(self.backend.pid, signal.SIGKILL)
        if kill and moment == "dma" and kind != "f":
            os.kill(front, signal.SIGUSR1)  # it may go on
        _, status = os.waitpid(front, 0)
        os.close(running)
        code = os.waitstatus_to_exitcode(status)
        assert code == 0 or (code == -signal.SIGKILL and kind == "f") or (code == 3 and kind in "ws"), (code, kind)
        if kind:
            self.count(kind)
        if kind == "s":
            wait_until(lambda: not any(map(alive, before)), DEADLINE, "all to be gone")
            self.start()
        else:
            self._settle(kind)

    def _wait_for(self, moment: str, running: int) -> None:
        """Until the front has said that it has come so far, and a little longer."""
        said = {"connect": b"c", "dma": b"d", "close": b"e"}.get(moment, b"")
        if moment == "any":
            select.select([], [], [], self._random.uniform(0, 0.15))
        elif moment == "connect":
            os.read(running, 1)
            select.select([], [], [], self._random.uniform(0, 0.03))
        else:
            while (got := os.read(running, 1)) not in (said, b""):
                pass
            self.in_dma += moment == "dma" and got == b"d"
            if moment == "close":
                select.select([], [], [], self._random.uniform(0, 0.01))

    def _kill_worker(self) -> None:
        """The latest process of the zygote: the worker, or a sealer in a few moments, or none."""
        _, _, *forked = tree(self.backend.pid)
        for pid in forked[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _settle(self, kind: str) -> None:
        """The session is over and the backend as it was."""

        def settled() -> bool:
            lines = self.backend.log[self.since :]
            begun = sum(line["event"] == "session" for line in lines)
            over = sum(line["event"] == "session over" for line in lines)
            return begun <= over and not Usage.of(self.backend.pid).more_than(self.before) if kind else begun == over

        try:
            wait_until(settled, DEADLINE, "the session to be over")
        except AssertionError:
            more = Usage.of(self.backend.pid).more_than(self.before)
            raise AssertionError(f"the backend still holds {more}\n{self.backend.log[self.since :]}") from None
        lines = self.backend.log[self.since :]
        self.since = len(self.backend.log)
        for line in lines:
            if line["event"] == "session over" and kind == "w" and line["problems"]:
                assert any("killed by SIGKILL" in step for step in line["steps"]), line
                self.count("told")
            elif line["event"] == "session over":
                assert line["problems"] == 0, line


def _live(backend: Serving, report: int, hold: bool) -> NoReturn:
    """The life of a front. Exit code 3 when the backend went away under it."""
    code = 1
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        os.write(report, b"c")
        session = backend.connect("edu0", timeout=10.0, wait=DEADLINE)
        edu = Edu(session, session.acquire("edu0"), 20.0)
        assert edu.identity() & 0xFF == 0xED and edu.alive(os.getpid())
        buffer = session.dma.alloc(4096)
        assert not any(buffer.memory), "the DMA memory of a new session is not zero"
        buffer.memory[:] = b"\xa5" * buffer.size
        edu.start_dma(buffer.iova, BUFFER, 2048, 0)
        os.write(report, b"d")
        if hold:
            assert edu.dma_running()
            signal.sigwait([signal.SIGUSR1])
            edu.dma_running()
        os.write(report, b"e")
        session.close()
        code = 0
    except (PcisplitError, OSError):
        code = 3
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(folder: str, times: int, seed: int) -> None:
    began = time.monotonic()
    killer = Killer(Path(folder), seed)
    while sum(killer.killed.get(kind, 0) for kind in "fws") < times:
        killer.life(kill=True)
    killer.life(kill=False)  # and the last one has it all
    after = Usage.of(killer.backend.pid)
    assert not after.more_than(killer.before)
    killer.backend.stop()
    print(f"killed {killer.killed}, {killer.in_dma} in a transfer, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
