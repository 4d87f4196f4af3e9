# SPDX-License-Identifier: MIT
"""The commands that a person types, over a scripted source; and what they say where there is no answer."""

import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pcisplit.back.control_protocol import (
    ANSWER_MAX,
    REQUEST_MAX,
)
from pcisplit.back.devices.models.dump import parse_dump
from pcisplit.cli import main
from pcisplit.cli.lspci import lspci_text
from pcisplit.pci import Bdf
from tests.control_backend import CONFIG, DEADLINE, Running

# -- the commands -------------------------------------------------------------------------------------------------


def run(running: Running, *args: str) -> Result:
    return CliRunner().invoke(main, [*args, "--control", str(running.path)])


def test_list_for_people(running: Running) -> None:
    done = run(running, "list")
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert ["nic0", "0000:03:00.0", "iommu", "14", "in", "session", "3"] in lines
    assert ["edu0", "model:edu", "edu0", "free"] in lines
    session = next(line for line in lines if "ixy" in line)
    assert session[:7] == ["3", "ixy", "nic0", "connected", "1000", "4242", "4250"]
    assert session[-2:] == ["1.2M", "7"]


def test_list_as_json(running: Running) -> None:
    done = run(running, "list", "--json")
    assert done.exit_code == 0
    result = json.loads(done.output)
    assert [device["state"] for device in result["devices"]] == ["in session", "free"]
    assert result["sessions"][0]["counters"]["requests"] == 1234567


def test_stats_for_people(running: Running) -> None:
    done = run(running, "stats")
    assert done.exit_code == 0 and running.source.calls == [("stats", None)]
    assert "meetings refused  2" in done.output
    assert "session 3, refused by rule: bar 5, command 2" in done.output
    assert ["nic0", "1,234,567", "7", "1,500", "12"] in [line.split() for line in done.output.splitlines()]
    assert run(running, "stats", "nic0", "--json").exit_code == 0
    assert running.source.calls[-1] == ("stats", "nic0")


def test_dump_is_what_a_dump_model_reads(running: Running, tmp_path: Path) -> None:
    done = run(running, "dump", "nic0")
    assert done.exit_code == 0
    assert done.output.startswith("0000:03:00.0 nic0, as its front sees it\n00: 86 80 d3 10 07 00 10 00")
    assert parse_dump(done.output, "dump") == bytes(CONFIG)
    hardware = run(running, "dump", "nic0", "--hardware")
    assert hardware.output.startswith("0000:03:00.0 nic0, as the hardware says\n")
    assert [call[2] for call in running.source.calls] == [False, True]


def test_a_note_is_told_beside_the_dump(running: Running) -> None:
    done = run(running, "dump", "edu0")
    assert "note" not in done.stdout and len(parse_dump(done.stdout, "dump")) == 256
    assert done.stderr == "note: the device is free: what its next front will see\n"


def test_dump_as_json(running: Running) -> None:
    result = json.loads(run(running, "dump", "nic0", "--json").output)
    assert bytes.fromhex(result["octets"]) == bytes(CONFIG)


@pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed: apt-get install pciutils")
@pytest.mark.parametrize("name, slot", [("nic0", "03:00.0"), ("edu0", "00:00.0")])
def test_lspci_decodes_a_dump(running: Running, tmp_path: Path, name: str, slot: str) -> None:
    (tmp_path / "dump").write_text(run(running, "dump", name).stdout)
    command = ["lspci", "-nn", "-vv", "-F", str(tmp_path / "dump")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout
    assert said.startswith(slot) and "[8086:10d3]" in said
    assert "Power Management version 2" in said and "MSI: Enable-" in said
    assert "Mem+" in said and "Region 0: Memory at fec00000" in said


def test_a_dump_is_256_or_4096_octets() -> None:
    for size in (0, 64, 255, 4095, 8192):
        with pytest.raises(ValueError, match="octets of configuration space"):
            lspci_text(Bdf(0, 3, 0, 0), "x", bytes(size))


def test_detach_and_attach(running: Running) -> None:
    done = run(running, "detach", "nic0")
    assert done.exit_code == 0
    assert "session 3 had nic0; it was ended" in done.output
    assert [line.split()[:2] for line in done.output.splitlines()[1:4]] == [
        ["✓", "bus"],
        ["✓", "reset"],
        ["✗", "unmap"],
    ]
    assert "flr" in done.output and "EBUSY" in done.output
    assert "no front gets it until pcisplit attach nic0" in done.output
    assert "detached" in run(running, "list").output
    assert run(running, "attach", "nic0").output == "nic0 is offered again; a front may have it\n"
    again = run(running, "attach", "nic0")
    assert (again.exit_code, again.output) == (1, "Error: nic0 is not detached; pcisplit list tells its state\n")
    free = run(running, "detach", "edu0")
    assert "session" not in free.output and "edu0 is detached" in free.output


def test_who_waits_for_a_detach_may_stop_waiting(running: Running) -> None:
    gate = running.source.block("detach")
    command = [sys.executable, "-m", "pcisplit", "detach", "nic0", "--control", str(running.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as client:
        assert running.source.entered.wait(DEADLINE)
        client.send_signal(signal.SIGINT)
        assert client.stderr is not None
        assert client.stderr.read().strip() == (
            "Error: not waiting any more; the backend goes on: pcisplit list tells how far"
        )
        assert client.wait(DEADLINE) == 1
    running.free(gate)


def test_the_path_comes_from_the_environment(running: Running) -> None:
    done = CliRunner().invoke(main, ["list"], env={"PCISPLIT_CONTROL": str(running.path)})
    assert done.exit_code == 0 and "nic0" in done.output


# -- where there is no answer -------------------------------------------------------------------------------------


def said(code: int, *args: str) -> str:
    done = CliRunner().invoke(main, list(args))
    assert done.exit_code == code and "Traceback" not in done.output, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("command", [["list"], ["dump", "x"], ["stats"], ["detach", "x"], ["attach", "x"]])
def test_no_control_path(command: list[str]) -> None:
    assert "pcisplit serve ... --control PATH" in said(2, *command)


def test_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "control"
    assert f"pcisplit serve ... --control {path}" in said(1, "list", "--control", str(path))
    path.write_text("")
    assert "is no socket" in said(1, "list", "--control", str(path))
    assert "too long" in said(1, "list", "--control", "/" + "x" * 200)


def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
        gone.bind(str(tmp_path / "control"))
    assert "its backend has ended" in said(1, "list", "--control", str(tmp_path / "control"))


def test_the_socket_of_fronts(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as meeting:
        meeting.bind(str(tmp_path / "socket"))
        meeting.listen()
        assert "is where fronts meet the backend" in said(1, "list", "--control", str(tmp_path / "socket"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_somebody_elses_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control"))
        os.chmod(tmp_path, 0o755)
        os.chmod(tmp_path / "control", 0o600)
        listener.listen()
        # The interpreter of the tests may lie where another uid cannot read it: only the effective uid changes, late.
        script = (
            "import os, sys, pcisplit.cli.client, pcisplit.cli.control_screen; from pcisplit.cli import main\n"
            f"os.chdir({str(tmp_path)!r}); os.setegid(12345); os.seteuid(12345)\n"
            "main(['list', '--control', 'control'])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1, done
    assert (
        done.stderr
        == "Error: uid 12345 may not use control: it is for uid 0 alone, who runs the backend, and for root\n"
    )


@pytest.mark.parametrize(
    "line, text",
    [
        (b"", "hung up: it ended before it answered"),
        (b"\x1b[2J\n", "an answer is one JSON object a line"),
        (b'{"pcisplit": 2, "id": 1, "ok": true, "result": {}}\n', "answers in version 2 of the control protocol"),
        (b'{"pcisplit": 1, "id": 9, "ok": true, "result": {}}\n', "is none to what was asked"),
        (b'{"pcisplit": 1, "id": 1, "ok": false, "error": "no"}\n', "is none to what was asked"),
        (b"x" * (ANSWER_MAX + 1), "a line is at most 1048576 octets"),
    ],
)
def test_a_backend_that_talks_nonsense(tmp_path: Path, line: bytes, text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        command = [sys.executable, "-m", "pcisplit", "list", "--control", str(tmp_path / "control")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as client:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(REQUEST_MAX)
                connection.sendall(line)
            assert client.stderr is not None and text in client.stderr.read()
            assert client.wait(DEADLINE) == 1


def test_a_backend_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcisplit.cli.client._PATIENCE", -9.9)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        assert "did not answer list within 0.1 s; it may be stopped or stuck" in said(
            1, "list", "--control", str(tmp_path / "control")
        )


def test_a_backend_that_does_not_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcisplit.cli.client._CONNECT_SECONDS", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stuck, socket.socket(socket.AF_UNIX) as first:
        stuck.bind(str(tmp_path / "control"))
        stuck.listen(0)
        first.connect(str(tmp_path / "control"))
        assert "does not accept; it may be stopped" in said(1, "list", "--control", str(tmp_path / "control"))


# -- watching -----------------------------------------------------------------------------------------------------


def test_watch_wants_a_terminal(running: Running) -> None:
    done = run(running, "list", "--watch")
    assert done.exit_code == 2 and "use --json --watch" in done.output


def test_watch_as_json_until_it_is_interrupted(running: Running) -> None:
    command = [sys.executable, "-m", "pcisplit", "list", "--json", "--watch", "--control", str(running.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stderr is not None
        for _ in range(2):
            assert len(json.loads(client.stdout.readline())["devices"]) == 2
        client.send_signal(signal.SIGINT)
        assert (client.wait(DEADLINE), client.stderr.read()) == (0, b"")


def read_until(fd: int, text: bytes, shown: bytes = b"") -> bytes:
    """What a terminal shows until `text` is in it."""
    deadline = time.monotonic() + DEADLINE
    while text not in shown:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], shown
        shown += os.read(fd, 4096)
    return shown


@pytest.mark.parametrize("how", ["Ctrl-C", "the backend ends"])
def test_watch_on_a_terminal(running: Running, how: str) -> None:
    command = [sys.executable, "-m", "pcisplit", "list", "--watch", "--control", str(running.path)]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    ) as client:
        os.close(slave)
        first = read_until(master, b"connected")
        assert b"\x1b[?1049h" in first  # a screen of its own, which is taken away again
        running.source.detached.add("nic0")
        assert b"detached" in read_until(master, b"no sessions")  # a second look
        if how == "Ctrl-C":
            client.send_signal(signal.SIGINT)
        else:
            running.stop()
        last = read_until(master, b"\x1b[?1049l" if how == "Ctrl-C" else b"still running?")
        assert b"Traceback" not in last and b"\x1b[?25h" in last  # the cursor is back
        assert client.wait(DEADLINE) == (0 if how == "Ctrl-C" else 1)
    os.close(master)
