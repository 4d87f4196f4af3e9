# SPDX-License-Identifier: MIT
"""``pcisplit demo``: what a newcomer runs first must work, fail loudly when it does not, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcisplit.demo.edu_driver import BUFFER_SIZE, DMA_BITS, RAISED_BY_FACTORIAL, Edu
from pcisplit.front import Session
from pcisplit.proto.errors import AccessTimeout
from pcisplit.proto.slots import Request
from tests.conftest import DEADLINE, Backend

STEPS = [
    "meeting",
    "driver starts",
    "identity",
    "liveness",
    "factorial, polled",
    "factorial, by interrupt",
    "interrupts",
    "refused by policy",
    "DMA there and back",
    "DMA outside its window",
    "goodbye",
]


def start(folder: Path, *args: str) -> "subprocess.Popen[str]":
    """``pcisplit demo`` with its temporary directory in `folder`."""
    command = [sys.executable, "-m", "pcisplit", "demo", *args]
    environment = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "80"}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def demo(folder: Path, *args: str) -> tuple[int, str]:
    """Exit code and output of a demo that says nothing on standard error and leaves nothing behind."""
    process = start(folder, *args)
    out, err = process.communicate(timeout=DEADLINE)
    assert err == ""
    assert list(folder.glob("pcisplit-demo-*")) == []
    return process.returncode, out


def steps_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in report["steps"]}


def test_every_step_holds(tmp_path: Path) -> None:
    code, out = demo(tmp_path, "--json")
    report = json.loads(out)
    assert code == 0, report
    assert (report["ok"], report["problem"], report["backend_exit"], report["id"]) == (True, "", 0, "1234:11e8")
    steps = steps_of(report)
    assert list(steps) == STEPS
    assert all(step["ok"] and step["microseconds"] > 0 for step in steps.values())
    assert steps["meeting"]["facts"]["DMA window"] == "1024 KiB at IOVA 0x200000"
    assert "0x010000ed" in steps["identity"]["result"]
    assert steps["identity"]["messages"] == len(steps["identity"]["trace"]) == 4
    assert steps["factorial, by interrupt"]["interrupts"] == 1
    assert steps["interrupts"]["interrupts"] == 3
    assert "conf_write #" in " ".join(steps["refused by policy"]["trace"])
    assert "denied by rule capability (10)" in steps["refused by policy"]["result"]
    (fault,) = steps["DMA outside its window"]["logged"]
    assert (fault["event"], fault["iova"], fault["reason"]) == ("DMA fault", "0x400000", "no window")
    teardown = list(steps["goodbye"]["facts"])
    assert teardown.index("master off model:edu") < teardown.index("reset model:edu") < teardown.index("drop memory")
    assert steps["goodbye"]["facts"]["writes refused"] == "edu0: capability 1"


def test_what_a_person_sees(tmp_path: Path) -> None:
    code, out = demo(tmp_path)
    assert code == 0, out
    for text in (
        "front",
        "back",
        "bar_write LIVENESS = 0xc0ffee42",
        "denied by rule capability (10)",
        "are equal",
        "11 steps, all",
    ):
        assert text in out
    assert "✗" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_against_a_backend_that_is_there(make_backend: Callable[..., Backend], tmp_path: Path) -> None:
    """Twice, under another name, with a device that is slower; the backend is left alone."""
    backend = make_backend("--device", "nic7=model:edu,dma_ms=30")
    for number in (1, 2):
        code, out = demo(tmp_path, "--socket", str(backend.path), "--device", "nic7", "--json")
        report = json.loads(out)
        assert code == 0, report
        assert report["backend_exit"] is None
        assert steps_of(report)["DMA there and back"]["microseconds"] > 60_000
        backend.wait_log("session over", number)


def test_what_fails_is_told(backend: Backend, tmp_path: Path) -> None:
    """A wrong name, a device that is no edu, no backend: the step, the reason, and an exit code that is not 0."""
    for args, why in (
        (["--socket", str(backend.path), "--device", "nic9"], "no device 'nic9' is served"),
        (["--socket", str(backend.path), "--device", "ram0"], "is not an edu device, which is 1234:11e8"),
        (["--socket", str(tmp_path / "nowhere")], "nowhere: No such file or directory"),
    ):
        code, out = demo(tmp_path, *args, "--json")
        report = json.loads(out)
        assert (code, report["ok"]) == (1, False)
        (failed,) = (step for step in report["steps"] if not step["ok"])
        assert why in failed["result"]
        code, out = demo(tmp_path, *args)
        assert code == 1
        assert "not as it must be" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, no traceback, no backend and no directory left."""
    process = start(tmp_path)
    assert process.stdout is not None and process.stderr is not None
    with process, process.stdout, process.stderr:
        before = process.stdout.readline()  # the backend runs when the first line is out
        process.send_signal(number)
        out = before + process.stdout.read()  # ends when the backend, too, is gone
        assert process.stderr.read() == ""
        assert process.wait(DEADLINE) in (0, 130), out
        assert process.returncode == 0 or out.rstrip().endswith("interrupted")
    assert list(tmp_path.glob("pcisplit-demo-*")) == []


# -- the driver ---------------------------------------------------------------------------------------------------


def test_the_driver_polls_where_it_may_not_sleep(session: Session) -> None:
    edu = Edu(session, session.acquire("edu0"))
    buffer = session.dma.alloc(2 * BUFFER_SIZE, align=4096)
    buffer.memory[:BUFFER_SIZE] = data = os.urandom(BUFFER_SIZE)
    edu.dma_to_device(buffer.iova, BUFFER_SIZE - 1, offset=1)
    edu.dma_from_device(buffer.iova + BUFFER_SIZE, 100, offset=50)
    assert bytes(buffer.memory[BUFFER_SIZE : BUFFER_SIZE + 100]) == data[49:149]
    assert [edu.factorial(n) for n in (0, 1, 5, 34)] == [1, 1, 120, 0]
    assert edu.interrupts_seen == 0


def test_the_driver_refuses_what_would_stop_qemu(session: Session) -> None:
    edu = Edu(session, session.acquire("edu0"))
    for count, offset in ((BUFFER_SIZE + 1, 0), (1, BUFFER_SIZE), (1, -1)):
        with pytest.raises(ValueError, match="not within the device's buffer"):
            edu.dma_from_device(0x200000, count, offset)
    with pytest.raises(ValueError, match="is not an edu device"):
        Edu(session, session.acquire("ram0"))


def test_the_driver_begins_with_what_the_last_one_left(session: Session) -> None:
    device = session.acquire("edu0")
    Edu(session, device).raise_interrupt(0xFFFF)
    edu = Edu(session, device)
    assert edu.interrupt_status() == 0
    edu.enable_interrupts()
    assert edu.factorial_by_interrupt(3) == 6
    edu.disable_interrupts()
    assert edu.factorial(4) == 24


def test_every_wait_of_the_driver_has_a_deadline(session: Session, backend: Backend) -> None:
    """No interrupt comes, since they are not enabled: the driver gives up, sooner with less patience."""
    edu = Edu(session, session.acquire("edu0"), patience=0.05)
    with session.trace() as crossed, pytest.raises(AccessTimeout, match="waiting"):
        edu.wait_interrupt(RAISED_BY_FACTORIAL)
    assert not [slot for slot in crossed if isinstance(slot, Request)]


def test_the_driver_waits_for_a_transfer_no_longer_than_its_patience(make_backend: Callable[..., Backend]) -> None:
    backend = make_backend("--device", "edu0=model:edu,dma_ms=2000")
    with backend.connect(dma_bits=DMA_BITS) as session:
        edu = Edu(session, session.acquire("edu0"), patience=0.05)
        with pytest.raises(TimeoutError, match=r"edu0 did not finish a DMA transfer within 0\.05 s"):
            edu.dma_to_device(session.dma.alloc(64).iova, 64)
        assert edu.dma_running()
