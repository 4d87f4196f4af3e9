# SPDX-License-Identifier: MIT
"""The command line: bad input gets a sentence, not a traceback."""

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pcisplit.back.supervisor.specs import parse_spec
from pcisplit.cli import main


def serve(*args: str) -> str:
    """What ``serve`` says when it refuses to start."""
    done = CliRunner().invoke(main, ["serve", *args])
    assert done.exit_code in (1, 2), done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    "command", [[], ["serve"], ["demo"], ["list"], ["dump"], ["stats"], ["detach"], ["attach"], ["decode"]]
)
def test_help_has_examples(command: list[str]) -> None:
    done = CliRunner().invoke(main, [*command, "--help"])
    assert done.exit_code == 0
    assert not command or "Examples" in done.output


@pytest.mark.parametrize(
    "device, text",
    [
        ("edu0", "is not NAME=SPEC, such as edu0=model:edu"),
        ("e/0=model:edu", "use 1 to 67 letters and digits"),
        ("a=model:nic", "there is no model 'nic'; there are edu, ram"),
        ("a=model:edu,speed=9", "unknown option 'speed'; this model takes dma_ms, reset"),
        ("a=model:ram,size=1000", "not a power of two"),
        ("a=03:00.9", "is not a PCI address; write it as 0000:03:00.0"),
        ("a=0000:03:00.0,id=8086", "is not VENDOR:DEVICE, such as 8086:10fb"),
        ("a=0000:03:00.0,uid=alice", "uid=alice is not a number"),
        ("a=0000:03:00.0,fast", "'fast' is not key=value"),
        ("a=dump:/nonexistent", "No such file"),
        ("a=dump:/nonexistent,reset=bus", "unknown option 'reset'; there are id, uid, gid, tender"),
        ("a=0000:03:00.0,speed=9", "unknown option 'speed'; there are id, uid, gid, tender, reset"),
        ("a=0000:03:00.0,reset=hard", "reset=hard is none of flr, af, pm, bus, none"),
    ],
)
def test_a_bad_device(device: str, text: str, tmp_path: Path) -> None:
    assert text in serve("--device", device, "--socket", str(tmp_path / "s" / "socket"))


def test_a_name_given_twice(tmp_path: Path) -> None:
    args = ["--device", "a=model:edu", "--device", "a=model:ram", "--socket", str(tmp_path / "socket")]
    assert "--device a is given twice" in serve(*args)


def test_a_bad_size(tmp_path: Path) -> None:
    assert "write octets, or 64K, 16M, 1G" in serve("--device", "a=model:edu", "--socket", "x", "--dma", "lots")


@pytest.mark.parametrize(
    "option, value, text",
    [
        ("--spin", "nan", "is not from 0 (sleep at once) to 1000000 microseconds; 50 is usual"),
        ("--spin", "-1", "is not from 0"),
        ("--spin", "inf", "is not from 0"),
        ("--spin", "long", "is not from 0"),
        ("--worker-user", "nosuchuser", "there is no user 'nosuchuser'; make one"),
        ("--worker-user", "root", "0 is root, and a worker is what a front may break into"),
        ("--worker-user", "65534", "65534 is nobody"),
        ("--worker-user", "4294967295", "is no uid; the last one is 4294967294"),
        ("--worker-user", "9" * 5000, "there is no user"),
        ("--worker-uids", "70000", "write first and last, such as 70000-70063"),
        ("--worker-uids", "70063-70000", "write first and last"),
        ("--worker-uids", "0-63", "0 is root"),
        ("--worker-uids", "65000-66000", "65534 is nobody"),
        ("--worker-uids", "70000-4294967295", "is no uid"),
    ],
)
def test_a_bad_option(option: str, value: str, text: str) -> None:
    assert text in serve("--device", "a=model:edu", "--socket", "x", option, value)


def test_options_that_exclude_each_other() -> None:
    both = serve("--device", "a=model:edu", "--socket", "x", "--worker-user", "70000", "--worker-uids", "70000-70001")
    assert "--worker-uids is the safer" in both
    one = serve("--device", "a=model:edu", "--socket", "x", "--control", "./x")
    assert "--socket and --control need a path each" in one


def test_what_serve_is_told_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def make_server(**options: Any) -> None:
        given.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("pcisplit.back.supervisor.specs.make_server", make_server)
    args = ["--device", "a=model:edu", "--socket", "s", "--control", "c", "--dma", "1M", "--spin", "0"]
    assert "enough" in serve(*args, "--worker-uids", "70000-70063", "--allow-no-reset")
    assert given.pop("zygote").fileno() == -1  # closed by now
    assert given == {
        "log_lines": 10,
        "texts": ("a=model:edu",),
        "path": Path("s"),
        "control": Path("c"),
        "dma": 1 << 20,
        "spin": 0.0,
        "worker_user": None,
        "worker_uids": range(70000, 70064),
        "allow_no_reset": True,
    }
    serve(*args, "--worker-user", "54321")
    assert given["worker_user"] == (54321, 54321)
    name = pwd.getpwall()[1]
    serve(*args, "--worker-user", name.pw_name)
    assert given["worker_user"] == (name.pw_uid, name.pw_gid)


def test_help_imports_nothing_heavy() -> None:
    """``--help`` and a wrong option answer at once: the command line loads what a command needs when it runs."""
    heavy = "{'trio', 'rich', 'construct', 'structlog', 'pcisplit._core', 'pcisplit.wire'}"
    script = f"import sys, pcisplit.cli; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_zygote_loads_no_more_than_its_processes_need() -> None:
    """Every fork copies the tables of what is loaded: half of it was structlog, and the asyncio and rich that it brings."""
    heavy = "{'trio', 'rich', 'structlog', 'asyncio', 'ssl'}"
    script = "import sys, pcisplit.cli.serve, pcisplit.back.supervisor.zygote as z; z._mains()\n"
    script += f"found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.clause("MEET-1")
def test_a_socket_directory_that_is_open_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    said = serve("--device", "a=model:edu", "--socket", str(tmp_path / "socket"))
    assert "has mode 0755, so others may reach the socket" in said
    assert "/run/pcisplit" in said


def test_a_socket_that_somebody_listens_at(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        assert "another backend listens at" in serve("--device", "a=model:edu", "--socket", str(path))
    path.unlink()
    path.write_text("")
    assert "is not a socket" in serve("--device", "a=model:edu", "--socket", str(path))


@pytest.mark.skipif(os.path.exists("/dev/vfio/vfio"), reason="this machine has VFIO; the lab tests the real thing")
def test_a_device_where_there_is_no_vfio(tmp_path: Path) -> None:
    parse_spec("nic0=0000:03:00.0,id=8086:10fb")


def test_a_spec_taken_apart() -> None:
    spec = parse_spec("nic0=0000:03:00.0,id=8086:10FB,uid=5,uid=6,gid=7,tender=8")
    assert (spec.name, spec.what, spec.expect_id) == ("nic0", "0000:03:00.0", (0x8086, 0x10FB))
    assert spec.rights == {"uid": frozenset({5, 6}), "gid": frozenset({7}), "tender": frozenset({8})}
    assert spec.options == {}


def test_the_socket_belongs_to_the_group_of_its_directory(tmp_path: Path) -> None:
    """A 0750 directory of a group lets that group knock; who gets a device is decided by uid= and gid=."""
    from pcisplit.back.supervisor.sockets import listening

    folder = tmp_path / "meeting"
    folder.mkdir(mode=0o750)
    if os.getuid() != 0:
        pytest.skip("only root can give a directory to another group")
    os.chown(folder, -1, 1000)
    with listening(folder / "socket"):
        status = (folder / "socket").stat()
        assert (status.st_gid, status.st_mode & 0o777) == (1000, 0o660)
