# SPDX-License-Identifier: MIT
"""Control clients that do not behave, and texts of a front on the operator's terminal. Each costs its own place, no more."""

import json
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pcisplit.back.control_protocol import ANSWER_MAX, REQUEST_MAX
from pcisplit.back.supervisor.control import Limits
from pcisplit.cli import main
from tests.control_backend import DEADLINE, HOSTILE, RawClient, Running, control_backend


def works(running: Running) -> None:
    """Somebody else is served."""
    with running.client() as client:
        assert client.call("list")["ok"] is True


def ended(client: RawClient) -> bool:
    """Whether the server has hung up, whatever it said before."""
    try:
        while client.line() is not None:
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_client_that_never_reads(tmp_path: Path) -> None:
    """It asks for big answers and leaves them: one is kept, for the write deadline, then it is dropped."""
    with control_backend(tmp_path, Limits(write_seconds=0.1)) as running:
        running.source.extra = {"padding": "x" * (ANSWER_MAX // 2)}
        with running.client(receive=4096) as client:
            line = json.dumps({"pcisplit": 1, "id": 1, "do": "list"}).encode() + b"\n"
            client.send(line * 100)
            hung_up = select.poll()
            hung_up.register(client.sock, select.POLLHUP)
            assert hung_up.poll(DEADLINE * 1000)
            running.source.extra = {}
            works(running)
        assert running.source.calls.count(("list",)) <= 2 + 1  # it was not read on while it did not read
        assert [entry["event"] for entry in running.log] == ["control client does not read its answer"]


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_a_line_without_end(tmp_path: Path, newline: bytes) -> None:
    """It is told so, though it has not stopped writing, and is hung up on; what it writes is not kept."""
    with control_backend(tmp_path) as running:
        with running.client() as client:

            def write() -> None:
                try:
                    client.send(b"x" * (20 * REQUEST_MAX) + newline)
                    client.sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # hung up on, sooner

            writer = threading.Thread(target=write)
            writer.start()
            assert client.refusal() == "too_long"
            assert ended(client)
            writer.join(DEADLINE)
            assert not writer.is_alive()
        works(running)


def test_a_line_too_long_from_one_who_does_not_stop(tmp_path: Path) -> None:
    """It is hung up on; it cannot hold its place by writing on."""
    with control_backend(tmp_path) as running, running.client() as client:
        client.send(b"x" * REQUEST_MAX)
        assert client.refusal() == "too_long"
        with pytest.raises(OSError):
            while True:
                client.send(b"x" * 4096)
        works(running)


@pytest.mark.parametrize(
    "octets",
    [
        os.urandom(REQUEST_MAX // 2).replace(b"\n", b"") + b"\n",
        b"\0\n",
        b"\xff\xfe\n",
        b"[" * (REQUEST_MAX - 2) + b"\n",
        b'{"pcisplit":1,"do":"list","id":' + b"9" * 60000 + b"}\n",
        b'{"pcisplit":1,"do":"__class__"}\n',
        b'{"pcisplit":1,"do":"dump","name":"nic0\\u001b[2J"}\n',
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_a_malformed_line(tmp_path: Path, octets: bytes) -> None:
    with control_backend(tmp_path) as running:
        with running.client() as client:
            client.send(octets)
            client.refusal()
            assert client.call("list")["ok"] is True
        assert running.source.calls == [("list",)] and running.log == []


def test_clients_that_die(tmp_path: Path) -> None:
    """In the middle of a line, of an answer, of a command that takes long: their places are free again."""
    with control_backend(tmp_path, Limits(clients=2)) as running:
        for _ in range(10):
            half = running.client()
            half.send(b'{"pcisplit": 1, "do": ')
            half.close()
            asked = running.client()
            asked.ask("list")
            asked.close()
            reset = running.client()
            reset.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset.ask("dump", name="nic0")
            reset.close()
            _until_served(running)
        gate = running.source.block("detach")
        gone = running.client()
        gone.ask("detach", name="nic0")
        assert running.source.entered.wait(DEADLINE)
        gone.close()
        works(running)
        running.free(gate)
        _until_served(running)
        assert "nic0" in running.source.detached  # what was begun is done, whoever still listens
        assert {entry["event"] for entry in running.log} == {"control"}


def _until_served(running: Running) -> None:
    """A place becomes free: asks again until then, as a person would."""
    for _ in range(10_000):
        with running.client() as client:
            try:
                if client.call("list")["ok"]:
                    return
            except (BrokenPipeError, ConnectionResetError):
                continue
    raise AssertionError("no place became free")


def test_the_ninth_client_gets_a_sentence(tmp_path: Path) -> None:
    with control_backend(tmp_path) as running:
        clients = [running.client() for _ in range(8)]
        for client in clients:
            assert client.call("list")["ok"] is True
        with running.client() as ninth:
            assert ninth.refusal() == "too_many_clients"
            assert ninth.line() is None
        done = CliRunner().invoke(main, ["list", "--control", str(running.path)])
        assert done.exit_code == 1
        assert done.output == "Error: 8 control clients are connected, which is all that may be; end one of them\n"
        clients.pop().close()
        _until_served(running)
        for client in clients:
            assert client.call("list")["ok"] is True
            client.close()


def test_a_flood_of_clients(tmp_path: Path) -> None:
    """Hundreds that connect and say nothing: each beyond the eighth is gone at once, those in are served."""
    before = len(os.listdir("/proc/self/fd"))
    with control_backend(tmp_path) as running:
        with running.client() as first:
            assert first.call("list")["ok"] is True
            flood = [running.client() for _ in range(300)]
            assert first.call("list")["ok"] is True
            assert sum(client.line() is not None for client in flood[7:]) == 293
            for client in flood:
                client.close()
        _until_served(running)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("command", [["list"], ["stats"], ["dump", "nic0"], ["detach", "nic0"], ["attach", "nic0"]])
def test_hostile_text_does_not_reach_the_terminal(tmp_path: Path, command: list[str]) -> None:
    """A driver names itself an escape sequence; so does, for good measure, everything else that is text."""
    hostile: dict[str, Any] = {
        "name": HOSTILE,
        "state": HOSTILE,
        "spec": HOSTILE,
        "driver": HOSTILE,
        "devices": [HOSTILE],
        "number": HOSTILE,
    }
    hostile |= {"counters": {HOSTILE: HOSTILE}, "refused": {HOSTILE: HOSTILE}, "quarantined": HOSTILE}
    hostile |= {"step": HOSTILE, "device": HOSTILE, "result": HOSTILE, "problem": HOSTILE}
    with control_backend(tmp_path) as running:
        running.source.detached.add("nic0")
        running.source.extra = {"devices": [hostile], "sessions": [hostile], "steps": [hostile], "note": HOSTILE}
        for extra in ({}, {"supervisor": {"version": HOSTILE, HOSTILE: HOSTILE}, "bdf": HOSTILE}):
            running.source.extra |= extra
            shown = CliRunner().invoke(main, [*command, "--control", str(running.path)])
            _harmless(shown.output)
            assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
        as_json = CliRunner().invoke(main, [*command, "--json", "--control", str(running.path)])
        _harmless(as_json.output)


def test_hostile_text_in_an_error_does_not_reach_the_terminal(tmp_path: Path) -> None:
    from pcisplit.back.control_protocol import ControlError

    with control_backend(tmp_path) as running:
        running.source.problem = ControlError("failed", f"driver {HOSTILE} does not let go")
        done = CliRunner().invoke(main, ["detach", "nic0", "--control", str(running.path)])
        assert done.exit_code == 1 and r"\x1b]0;owned\x07" in done.output
        _harmless(done.output)


def test_a_driver_is_still_recognised(tmp_path: Path) -> None:
    """What was escaped is shown, not left out; a program gets it as it was."""
    with control_backend(tmp_path) as running:
        running.source.driver = HOSTILE
        shown = CliRunner().invoke(main, ["list", "--control", str(running.path)]).output
        assert r"\x1b]0;owned\x07\x1b[2J[red]ixy\r\nsession over \u202e" in shown
        as_json = CliRunner().invoke(main, ["list", "--json", "--control", str(running.path)]).output
        assert json.loads(as_json)["sessions"][0]["driver"] == HOSTILE


def _harmless(text: str) -> None:
    assert all(character == "\n" or character.isprintable() for character in text), ascii(text)
    assert "\u202e" not in text
