# SPDX-License-Identifier: MIT
"""The command line: bad input gets a sentence, not a traceback."""

import os
import socket
from pathlib import Path

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


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"]])
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
    ],
)
def test_a_bad_device(device: str, text: str, tmp_path: Path) -> None:
    assert text in serve("--device", device, "--socket", str(tmp_path / "s" / "socket"))


def test_a_name_given_twice(tmp_path: Path) -> None:
    args = ["--device", "a=model:edu", "--device", "a=model:ram", "--socket", str(tmp_path / "socket")]
    assert "--device a is given twice" in serve(*args)


def test_a_bad_size(tmp_path: Path) -> None:
    assert "write octets, or 64K, 16M, 1G" in serve("--device", "a=model:edu", "--socket", "x", "--dma", "lots")


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
