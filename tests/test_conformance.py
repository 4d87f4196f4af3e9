# SPDX-License-Identifier: MIT
"""The conformance kit against the real backend, one test per case; and the kit against backends that are wrong."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pcisplit import conformance, wire
from pcisplit.cli.conformance import back as main
from pcisplit.conformance import CASES, NOT_OBSERVABLE, Outcome, Result, Target, Violation, run_case
from pcisplit.conformance.case import Case
from pcisplit.proto.meeting import Reply
from pcisplit.wire import Error, Op

SPEC = Path(__file__).resolve().parent.parent / "spec"
DEADLINE = 20.0
#: As many devices as a session can have; the last cannot be reset.
DEVICES = ["edu0=model:edu", *(f"ram{n}=model:ram" for n in range(wire.MAX_DEVICES - 2)), "fixed0=model:ram,reset=no"]


@pytest.fixture(scope="session")
def backend() -> Iterator[Path]:
    """The socket of a ``pcisplit serve`` that must end well, in a folder that uid 65534 of our group can reach."""
    with tempfile.TemporaryDirectory(prefix="pcisplit-") as folder:
        os.chmod(folder, 0o750)
        yield from serve(Path(folder))


def serve(folder: Path) -> Iterator[Path]:
    path, log = folder / "socket", folder / "log"
    command = [sys.executable, "-m", "pcisplit", "serve", "--dma", "16M", "--allow-no-reset", "--socket", str(path)]
    command += [word for device in DEVICES for word in ("--device", device)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + DEADLINE
        while not path.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "serve does not listen"
            os.sched_yield()
        yield path
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(DEADLINE)
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def target(backend: Path) -> Target:
    return Target(str(backend))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=pytest.mark.clause(*case.clauses)) for case in CASES.values()]
)
def test_backend(target: Target, case: Case) -> None:
    result = run_case(target, case)
    if result.outcome is Outcome.NOT_RUN:
        pytest.skip(result.message)
    assert result.outcome is Outcome.PASSED, f"{case.proves}\n{result.message}"


def clauses_of_the_back() -> set[str]:
    """Clauses that are built and bind the back, alone or by a word in a clause of the front."""
    text = "".join(chapter.read_text() for chapter in SPEC.glob("*.md"))
    clauses = re.findall(r"\*\*\[([A-Z]+-\d+) (back|both|front)\]\*\* (.*)", text)
    return {ident for ident, role, sentence in clauses if role != "front" or "the back MUST" in sentence}


def test_every_clause_is_proved_or_said_not_to_be_observable() -> None:
    proved = {clause for case in CASES.values() for clause in case.clauses}
    assert proved | NOT_OBSERVABLE.keys() == clauses_of_the_back()
    assert not proved & NOT_OBSERVABLE.keys()


def test_every_case_says_what_it_proves() -> None:
    for case in CASES.values():
        assert case.proves.endswith("."), case.name
        assert case.clauses, case.name


@pytest.fixture(params=[b"", b"junk", Reply(Error.OP_FAILED, "no").to_bytes(), Reply(boot_info=b"junk").to_bytes()])
def impostor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The socket of a backend that says one thing to every hello, and then closes."""
    path = tmp_path / "socket"

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if connection.recv(4096) == b"end":
                    return
                connection.send(request.param)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last:
                last.connect(str(path))
                last.send(b"end")
            thread.join(DEADLINE)


def test_an_impostor_is_told_apart(impostor: Path) -> None:
    done = CliRunner().invoke(main, ["--socket", str(impostor), "--device", "edu0"])
    assert done.exit_code == 1
    assert "no first session" in done.output


def test_no_backend_at_all(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--socket", str(tmp_path / "nothing"), "--wait", "0"])
    assert done.exit_code == 1
    assert "no first session" in done.output


def test_a_backend_that_is_just_starting_is_waited_for(tmp_path: Path) -> None:
    """Nothing there, then a leftover that nobody listens at, then a backend."""
    path = tmp_path / "socket"
    kit = subprocess.Popen(
        [sys.executable, "-m", "pcisplit.conformance", "--socket", str(path), "--case", "nop"], stdout=subprocess.PIPE
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as leftover:
        leftover.bind(str(path))
    path.unlink()
    backend = serve(tmp_path)
    next(backend)
    try:
        output, _ = kit.communicate(timeout=60)
    finally:
        next(backend, None)
    assert kit.returncode == 0, output


def test_command_line(target: Target) -> None:
    """``python -m pcisplit.conformance``, as people call it, on one case and on two devices."""
    command = [sys.executable, "-m", "pcisplit.conformance", "--socket", target.path, "--device", "edu0"]
    done = subprocess.run([*command, "--json", "--case", "nop"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["clauses"] == {"RING-7": "passed", "RING-8": "passed", "RING-30": "passed"}
    done = subprocess.run([*command, "--case", "bar_memory"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no device here has: memory" in done.stdout
    done = subprocess.run([*command, "--case", "no-such-case"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no case matches" in done.stderr


def test_a_violation_fails_its_case_and_its_clauses(target: Target) -> None:
    """A case that expects what no backend does: the report says so, by case and by clause."""

    def wrong(target: Target) -> None:
        with target.session() as peer:
            raise Violation("a backend that never answers", str(peer.do(Op.NOP)))

    case = Case("wrong", ("RING-7", "RING-8"), frozenset({"any"}), 1, "Nothing.", wrong)
    results = [run_case(target, case), run_case(target, CASES["nop"]), Result(CASES["nop"], Outcome.NOT_RUN, 0.0)]
    assert [result.outcome for result in results] == [Outcome.FAILED, Outcome.PASSED, Outcome.NOT_RUN]
    report = json.loads(conformance.report_json(results))
    assert report["clauses"] == {"RING-7": "failed", "RING-8": "failed", "RING-30": "passed"}
    text = conformance.report_text(results, width=120)
    assert "expected: a backend that never answers; came: op 0x20" in text
    assert text.splitlines()[-1] == "1 passed, 1 not run, 1 failed"


def test_nothing_is_left_open(target: Target) -> None:
    """The kit's peers close every descriptor and mapping."""
    before = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd")
    for name in ("nop", "overrun", "hello_magic", "interrupt", "dma_copy"):
        assert run_case(target, CASES[name]).outcome is Outcome.PASSED
    assert (len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd")) == before
