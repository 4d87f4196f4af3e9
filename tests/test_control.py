# SPDX-License-Identifier: MIT
"""The control plane: its lines, and its server over a scripted source."""

import json
import os
import select
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcisplit.back.control_protocol import (
    ANSWER_MAX,
    COMMANDS,
    Code,
    ControlError,
    ControlRequest,
    Lines,
    answer,
    parse_answer_untrusted,
    parse_request_untrusted,
    refusal,
)
from pcisplit.back.supervisor.control import ControlServer, Limits, control_socket
from tests.control_backend import DEADLINE, Running, control_backend

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
