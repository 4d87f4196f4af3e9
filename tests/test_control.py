# SPDX-License-Identifier: MIT
"""The control plane: its lines, its server over a scripted source, and the commands that a person types."""

import json
import os
import pty
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcisplit.back.control_protocol import (
    ANSWER_MAX,
    COMMANDS,
    REQUEST_MAX,
    Code,
    ControlError,
    ControlRequest,
    Lines,
    answer,
    parse_answer_untrusted,
    parse_request_untrusted,
    refusal,
)
from pcisplit.back.devices.models.dump import parse_dump
from pcisplit.back.supervisor.control import ControlServer, Limits, control_socket
from pcisplit.cli import main
from pcisplit.cli.lspci import lspci_text
from pcisplit.pci import Bdf
from tests.control_backend import CONFIG, DEADLINE, Running, control_backend

# Two busy cores draw slowly; how slowly says nothing about what is tested.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# -- lines --------------------------------------------------------------------------------------------------------


@patient
@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cutter, found, at = Lines(64), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        cutter.feed(stream[at : at + step])
        at += step
        while (line := cutter.next_line()) is not None:
            found.append(line)
    assert found == lines


@pytest.mark.parametrize("length, fits", [(63, True), (64, False)])
@pytest.mark.parametrize("ended", [True, False])
def test_a_line_is_no_longer_than_it_may_be(length: int, fits: bool, ended: bool) -> None:
    lines = Lines(64)
    lines.feed(b"x" * length + (b"\n" if ended else b""))
    if fits:
        assert lines.next_line() == (b"x" * length if ended else None)
    else:
        with pytest.raises(ControlError) as raised:
            lines.next_line()
        assert raised.value.code == Code.TOO_LONG


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
anything = st.recursive(
    scalars | st.just(1) | st.sampled_from([*COMMANDS, "nic0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
requests = st.dictionaries(st.sampled_from(["pcisplit", "id", "do", "name", "hardware", "x"]), anything)


@patient
@given(st.binary(max_size=200) | requests.map(lambda fields: json.dumps(fields).encode()))
def test_any_line_is_a_request_or_a_sentence(line: bytes) -> None:
    try:
        request = parse_request_untrusted(line)
    except ControlError as problem:
        assert problem.code in set(Code) and len(str(problem)) > 10
        assert json.loads(refusal(problem))["ok"] is False
    else:
        assert request.arguments.keys() == COMMANDS[request.do].arguments.keys()


@patient
@given(st.binary(max_size=200) | requests.map(lambda fields: json.dumps(fields).encode()))
def test_any_line_is_an_answer_or_a_sentence(line: bytes) -> None:
    try:
        assert isinstance(parse_answer_untrusted(line, 1), dict)
    except ControlError as problem:
        assert isinstance(problem.code, str)


@patient
@given(st.sampled_from(list(COMMANDS)), st.from_regex(r"[A-Za-z0-9]{1,67}", fullmatch=True), st.booleans(), scalars)
def test_a_request_survives_the_way(do: str, name: str, hardware: bool, ident: Any) -> None:
    values = {"name": name, "hardware": hardware}
    request = ControlRequest(do, {key: values[key] for key in COMMANDS[do].arguments}, ident)
    assert parse_request_untrusted(request.to_bytes().removesuffix(b"\n")) == request


@patient
@given(st.dictionaries(st.text(), anything), scalars)
def test_an_answer_survives_the_way_in_one_line_of_ascii(result: dict[str, Any], ident: Any) -> None:
    line = answer(ident, result)
    assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert not any(octet < 0x20 for octet in line[:-1])
    assert parse_answer_untrusted(line, ident) == result


@pytest.mark.parametrize(
    "line, code, said",
    [
        (b"", "malformed", "one JSON object a line"),
        (b"[1]", "malformed", "one JSON object"),
        (b"{", "malformed", "one JSON object"),
        (b'{"pcisplit":1,"do":"list\xff"}', "malformed", "UTF-8"),
        (b'{"pcisplit":1,"do":"list","id":NaN}', "malformed", "JSON"),
        (b'{"pcisplit":1,"do":"list","id":1e999}', "malformed", "JSON"),
        (b'{"pcisplit":1,"do":"list","id":' + b"9" * 5000 + b"}", "malformed", "JSON"),
        (b"[" * 60000, "malformed", "JSON"),
        (b'{"pcisplit":1,"do":"list","id":' + b"[" * 60000 + b"]" * 5000, "malformed", "JSON"),
        (b'{"pcisplit":1,"do":"list","id":{}}', "malformed", "id is a number, null, or a text"),
        (b'{"do":"list"}', "malformed", 'the version of this protocol in it: {"pcisplit": 1, ...}'),
        (b'{"pcisplit":true,"do":"list"}', "malformed", "the version"),
        (b'{"pcisplit":2,"do":"list"}', "unknown_version", "speaks version 1 of the control protocol, not 2"),
        (b'{"pcisplit":1}', "malformed", "says what to do"),
        (b'{"pcisplit":1,"do":["list"]}', "malformed", "says what to do"),
        (b'{"pcisplit":1,"do":"run"}', "unknown_command", "there are list, dump, stats, detach, attach"),
        (b'{"pcisplit":1,"do":"__init__"}', "unknown_command", "there is no command '__init__'"),
        (b'{"pcisplit":1,"do":"list","x":1}', "bad_argument", "list has no argument 'x'; it takes no arguments"),
        (b'{"pcisplit":1,"do":"dump"}', "bad_argument", "dump needs name"),
        (b'{"pcisplit":1,"do":"dump","name":7}', "bad_argument", "name of dump is a text, not 7"),
        (b'{"pcisplit":1,"do":"dump","name":"a","hardware":1}', "bad_argument", "is true or false, not 1"),
        (b'{"pcisplit":1,"do":"dump","name":"../a"}', "unknown_device", "'../a' cannot name a device"),
    ],
)
def test_what_is_wrong_with_a_line(line: bytes, code: str, said: str) -> None:
    with pytest.raises(ControlError) as raised:
        parse_request_untrusted(line)
    assert (raised.value.code, said in str(raised.value)) == (code, True), str(raised.value)


def test_a_refusal_has_the_id_of_its_request() -> None:
    with pytest.raises(ControlError) as raised:
        parse_request_untrusted(b'{"pcisplit": 9, "id": "mine", "do": "list"}')
    assert json.loads(refusal(raised.value))["id"] == "mine"


def test_an_answer_that_is_too_long_is_refused() -> None:
    with pytest.raises(ControlError) as raised:
        answer(1, {"text": "x" * ANSWER_MAX})
    assert raised.value.code == Code.TOO_LONG


# -- the server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with control_backend(tmp_path) as running:
        yield running


def test_the_socket_is_for_its_owner_alone(running: Running) -> None:
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o600


def test_the_server_says_nothing_before_it_is_asked(running: Running) -> None:
    with running.client() as client:
        assert select.select([client.sock], [], [], 0.05)[0] == []
        assert client.call("list")["ok"] is True


def test_every_command_reaches_the_source_with_its_arguments(running: Running) -> None:
    with running.client() as client:
        for do, arguments in (("list", {}), ("dump", {"name": "nic0"}), ("dump", {"name": "nic0", "hardware": True})):
            assert client.call(do, **arguments)["ok"] is True
        for do, arguments in (("stats", {}), ("stats", {"name": "edu0"}), ("detach", {"name": "edu0"})):
            assert client.call(do, **arguments)["ok"] is True
        logged = [(line["do"], line["device"], line["uid"]) for line in running.log]
        assert logged == [("detach", "edu0", os.getuid())]  # who changed what; questions are not worth a line
        assert client.call("attach", name="edu0") == {
            "pcisplit": 1,
            "id": "attach",
            "ok": True,
            "result": {"name": "edu0"},
        }
    assert running.source.calls == [
        ("list",),
        ("dump", "nic0", False),
        ("dump", "nic0", True),
        ("stats", None),
        ("stats", "edu0"),
        ("detach", "edu0"),
        ("attach", "edu0"),
    ]


def test_a_refusal_of_the_source_is_passed_on(running: Running) -> None:
    with running.client() as client:
        got = client.call("dump", name="usb0")
    assert (got["id"], got["error"]["code"]) == ("dump", "unknown_device")
    assert "there are nic0, edu0" in got["error"]["text"]


def test_bad_lines_are_answered_and_the_next_one_still_works(running: Running) -> None:
    with running.client() as client:
        client.send(b'\n{"pcisplit": 1, "do": "dance", "id": 4}\nnonsense\n')
        assert [client.refusal() for _ in range(3)] == ["malformed", "unknown_command", "malformed"]
        assert client.call("list")["ok"] is True


def test_requests_of_one_client_are_answered_in_order(running: Running) -> None:
    lines = b"".join(json.dumps({"pcisplit": 1, "id": n, "do": "list"}).encode() + b"\n" for n in range(50))
    with running.client() as client:
        client.send(lines)
        assert [(client.line() or {})["id"] for _ in range(50)] == list(range(50))


def test_a_bug_in_a_command_is_told_and_ends_nothing(running: Running) -> None:
    with running.client() as client:
        for problem in (ZeroDivisionError("oh"), ExceptionGroup("many", [OSError("oh")]), TimeoutError()):
            running.source.problem = problem
            client.ask("list")
            assert client.refusal() == "internal"
            assert type(problem).__name__ in running.log[-1]["exception"]
        running.source.problem = None
        running.source.extra = {"devices": {1, 2}}  # no JSON
        client.ask("list")
        assert client.refusal() == "internal"
        running.source.extra = {"devices": "x" * ANSWER_MAX}
        client.ask("list")
        assert client.refusal() == "too_long"
        running.source.extra = {}
        assert client.call("list")["ok"] is True


def test_a_slow_command_of_one_keeps_nobody_else_waiting(running: Running) -> None:
    gate = running.source.block("dump")
    with running.client() as slow, running.client() as quick:
        slow.ask("dump", name="nic0")
        assert running.source.entered.wait(DEADLINE)
        assert quick.call("list")["ok"] is True
        assert quick.call("detach", name="edu0")["ok"] is True
        assert select.select([slow.sock], [], [], 0)[0] == []
        running.free(gate)
        assert (slow.line() or {})["ok"] is True


def test_a_command_that_never_ends_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "dump", COMMANDS["dump"]._replace(seconds=0.05))
    running.source.block("dump")
    with running.client() as client:
        client.ask("dump", name="nic0")
        assert client.refusal() == "timeout"
        assert client.call("list")["ok"] is True


def test_a_client_that_asks_nothing_is_let_go(tmp_path: Path) -> None:
    with control_backend(tmp_path, Limits(idle_seconds=0.05)) as running, running.client() as client:
        client.send(b'{"pcisplit": 1,')  # half a line is no line
        assert client.refusal() == "timeout"
        assert client.line() is None


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    path = tmp_path / "control"
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as other:
            other.bind(str(path))
            other.listen(0)
            with pytest.raises(ValueError, match="another backend listens at"), control_socket(path):
                pass
        with control_socket(path) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert not path.exists()


def test_a_live_socket_with_a_full_backlog_is_somebody(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(str(path))
            with pytest.raises(ValueError, match="another backend listens at"), control_socket(path):
                pass


def test_the_server_is_made_of_a_source_and_its_limits() -> None:
    with pytest.raises(TypeError):
        ControlServer()  # type: ignore[call-arg]


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
