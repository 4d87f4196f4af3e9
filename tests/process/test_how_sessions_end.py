# SPDX-License-Identifier: MIT
"""What front and operator are told of the end of a session: that all went well only when it did."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from pcisplit.front import Session
from pcisplit.proto.errors import MeetingRefused, SessionGone
from pcisplit.proto.meeting import Need
from pcisplit.wire import Error, State
from tests.conftest import DEADLINE, Backend
from tests.lab.serving import Serving
from tests.liar import STATE, Liar
from tests.process.exploited import COMMAND

REASON = 8  #: in the back's header, after STATE
ENDED = (State.CLOSING, State.CLOSED)


def gone(session: Session, name: str) -> SessionGone:
    """What a front that goes on reading is told in the end."""
    device = session.acquire(name)
    with pytest.raises(SessionGone) as told:
        while True:
            device.config.read16(0)
    return told.value


@pytest.mark.clause("LIFE-31", "THR-13")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_that_dies_is_a_failure_for_front_and_log(backend: Backend, number: int) -> None:
    with backend.connect(devices=["ram0"]) as session:
        (worker,) = backend.workers(1)
        os.kill(worker, number)
        told = gone(session, "ram0")
        assert told.reason is Error.OP_FAILED and "died or was killed" in str(told)
        over = backend.wait_log("session over")
        assert over["reason"] == "op_failed"
        assert any(f"died: killed by {signal.Signals(number).name}" in step for step in over["steps"])
        again = gone(session, "ram0")
        assert str(again) == str(told)


@pytest.mark.clause("LIFE-31")
def test_a_worker_that_exits_as_if_all_were_well(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    backend = Serving(["exits0=model:ram"], folder=folder, command=COMMAND).ready()
    try:
        with backend.connect("exits0") as session:
            assert gone(session, "exits0").reason is Error.OP_FAILED
        over: dict[str, Any] = backend.wait_log("session over")
        assert over["reason"] == "op_failed" and "worker: died: exit code 0" in over["steps"]
    finally:
        backend.stop()


@pytest.mark.clause("LIFE-31")
@pytest.mark.parametrize("state", [State.CONNECTED, State.INIT_WAIT, 99, State.CLOSING, State.CLOSED])
def test_what_a_dead_back_left_in_reason_is_not_believed(state: int) -> None:
    """Its last word is what it stored before it was Closing."""
    with Liar() as liar, liar.connect(timeout=5.0) as session:
        liar.b2f[REASON : REASON + 4] = int(Error.QUOTA).to_bytes(4, "little", signed=True)
        liar.words.store(STATE, state)
        liar.other.shutdown(socket.SHUT_RDWR)
        assert gone(session, "dev0").reason is (Error.QUOTA if state in ENDED else Error.OP_FAILED)


def test_who_ended_it_in_order_is_told(backend: Backend) -> None:
    session = backend.connect(devices=["ram0"])
    session.close()
    with pytest.raises(SessionGone, match="this side closed it") as told:
        session.acquire("ram0").config.read16(0)
    assert told.value.reason is Error.SUCCESS
    assert backend.wait_log("session over")["reason"] == "success"
    with backend.connect(devices=["ram0"]) as session:
        backend.process.send_signal(signal.SIGTERM)
        told_by_back = gone(session, "ram0")
        assert backend.process.wait(DEADLINE) == 0
        assert told_by_back.reason is Error.SUCCESS and "the backend ended it" in str(told_by_back)


def test_a_session_that_was_refused_is_no_success(backend: Backend) -> None:
    """Refused when it was opened: there are not that many vectors."""
    with pytest.raises(MeetingRefused):
        backend.connect(devices=[Need("ram0", 9)], dma=0)
    assert backend.wait_log("session over")["reason"] == "too_many_vectors"
