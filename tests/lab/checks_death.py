# SPDX-License-Identifier: MIT
"""kill -9 of front, worker and supervisor while their device is mastering the bus: nothing of them is left, no device is lost.

50 in all. After each, the DMA memory of the dead is looked at for as long as a transfer of edu takes: nothing may come.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

from pcisplit.demo.edu_driver import BUFFER, Edu

from .check import bind_vfio, clause, find_device, iommu_group, wait_until
from .serving import PATIENCE, SECONDS, Serving, alive, check_edu, kill_many, tree

DEVICES = ["pcie-root-port,id=rp1,chassis=1,slot=1,addr=0x10", "edu,bus=rp1"]
TIMEOUT = 600.0
CHECK_TIMEOUT = 150.0

FRONTS, WORKERS, SUPERVISORS = 20, 26, 4

_TRANSFER = 0.3  # seconds; edu takes 0.1 of the guest's
_backends: list[Serving] = []


def setup() -> None:
    """One backend."""
    (edu,) = find_device(0x1234, 0x11E8)
    bind_vfio(edu)
    _backends.append(_serve())


def _serve() -> Serving:
    return Serving([f"edu={find_device(0x1234, 0x11E8)[0]}"]).ready()


def _forked(backend: Serving) -> dict[str, int]:
    """Worker and keeper of a backend with one session, by kind: only a worker has mapped memory of the session."""
    _, _, *forked = tree(backend.pid)
    found = {}
    for pid in forked:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a sealer, which has ended
            maps = Path(f"/proc/{pid}/maps").read_text()
            found["worker" if "memfd:pcisplit-b2f" in maps else "keeper"] = pid
    return found


def _kill_in_dma(backend: Serving, whom: str) -> None:
    """SIGKILL to the worker or the supervisor in a transfer into memory, which we keep mapped and watch.

    When the device can be had again the transfer is over for good: what was there stays, whatever the next session does.
    """
    (bdf,) = find_device(0x1234, 0x11E8)
    session = backend.connect("edu")
    edu = Edu(session, session.acquire("edu"), PATIENCE)
    buffer = session.dma.alloc(4096)
    assert not any(buffer.memory), "the DMA memory of a new session is not zero"
    buffer.memory[:] = b"\xa5" * buffer.size
    processes = tree(backend.pid)
    victim = backend.pid if whom == "supervisor" else _forked(backend)["worker"]
    since = len(backend.log)
    edu.start_dma(BUFFER, buffer.iova, 2048, 2)
    os.kill(victim, signal.SIGKILL)
    if whom == "supervisor":
        wait_until(lambda: not any(map(alive, processes)), SECONDS, "all to be gone")
        command = (Path("/sys/bus/pci/devices") / bdf / "config").read_bytes()[4]
        assert not command & 4, "the dead backend's device may master the bus"
        with Path(f"/dev/vfio/{iommu_group(bdf)}").open("r+b", buffering=0):
            pass  # nobody has the group
    else:
        over = backend.wait_log("session over", since)
        assert any("killed by SIGKILL" in step for step in over["steps"]), over
        problems = [step for step in over["steps"] if "worker" not in step.split(":")[0]]
        assert over["problems"] == 1, problems
    then = bytes(buffer.memory)
    wait_until_over(_TRANSFER)
    assert bytes(buffer.memory) == then, "the device wrote into the memory of the dead"
    if whom == "worker":
        check_edu(backend, "edu")
        assert bytes(buffer.memory) == then, "the next session's device wrote into the memory of the dead"
    session.close()


def wait_until_over(seconds: float) -> None:
    """A transfer that was under way would be over now."""
    select.select([], [], [], seconds)


@clause("LIFE-4", "LIFE-10", "LIFE-13", "DMA-1")
def check_fronts_killed_in_the_middle_of_dma() -> None:
    """Afterwards no process, descriptor, mapping or thread more; the next session has it all."""
    kill_many(_backends[0], "edu", FRONTS)


@clause("LIFE-4", "LIFE-10", "DMA-1", "THR-3")
def check_workers_killed_in_the_middle_of_dma() -> None:
    """The keeper does the safe order; the log says how the worker died."""
    for _ in range(WORKERS):
        _kill_in_dma(_backends[0], "worker")


def check_backend_ends_well() -> None:
    """SIGTERM ends it with 0."""
    _backends[0].stop()


@clause("LIFE-10", "DMA-1")
def check_supervisors_killed_in_the_middle_of_dma() -> None:
    """The keeper does the safe order by itself; the socket and the group can be had again."""
    for _ in range(SUPERVISORS):
        backend = _serve()
        _kill_in_dma(backend, "supervisor")
    backend = _serve()
    check_edu(backend, "edu")
    backend.stop()
