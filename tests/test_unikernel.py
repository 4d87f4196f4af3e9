# SPDX-License-Identifier: MIT
"""The freestanding frontend as a unikernel uses it: boot-info with guest addresses, hooks, submit, yield, poll."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pcisplit import wire
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.meeting import Hello, Need, parse_reply_untrusted
from pcisplit.wire import Direction, Error, RegionIndex
from tests.conftest import Backend
from tests.machines import FRONT, INCLUDE, MACHINES, ROOT, Machine

SOURCES = [ROOT / "tests" / "c" / "unikernel.c", *FRONT]


def drive(backend: Backend, folder: Path, command: list[str], machine: Machine | None = None) -> None:
    """The tender does the meeting and hands on a block and descriptors; the unikernel knows nothing else."""
    with backend.raw() as sock, contextlib.ExitStack() as held:
        sock.send(Hello("unikernel", (Need("edu0", 1), Need("ram0")), 1 << 20, 28).to_bytes())
        data, fds, _, _ = socket.recv_fds(sock, 1 << 16, wire.MAX_FDS)
        for fd in fds:
            held.callback(os.close, fd)
        reply = parse_reply_untrusted(data)
        assert reply.error is Error.SUCCESS
        info = parse_boot_info_untrusted(reply.boot_info)
        block = folder / "boot-info"
        block.write_bytes(reply.boot_info)
        regions = [fds[info.region(index).fd] for index in RegionIndex]
        bells = {bell.index: fds[bell.fd] for bell in info.doorbells}
        handed = [*regions, bells[Direction.FRONT_TO_BACK], bells[Direction.BACK_TO_FRONT]]
        if machine:
            machine.pin(backend.workers())
        arguments = [str(block), *map(str, handed)]
        done = subprocess.run([*command, *arguments], pass_fds=handed, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "SUCCESS\n"), done.stderr
        assert sock.recv(1) == b""  # the back has seen the front close, and torn down
    backend.wait_log("session over")


@pytest.mark.clause("BOOT-2", "BOOT-3", "VER-6")
@pytest.mark.parametrize(
    "sanitize", [(), ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")], ids=["", "asan"]
)
def test_a_unikernel_with_a_tender(
    tool: Callable[[str], str], backend: Backend, tmp_path: Path, sanitize: tuple[str, ...]
) -> None:
    program = tmp_path / "unikernel"
    flags = ["-g", "-O2", "-Wall", "-Wextra", "-Werror", *sanitize, *INCLUDE]
    subprocess.run([tool("gcc"), *flags, *map(str, SOURCES), "-o", str(program)], check=True)
    drive(backend, tmp_path, [str(program)])


@pytest.mark.system
@pytest.mark.clause("BOOT-2", "BOOT-3", "VER-6")
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_a_unikernel_of_another_machine(
    tool: Callable[[str], str], backend: Backend, tmp_path: Path, machine: Machine
) -> None:
    """Its octets are ours: the back neither knows nor cares what its front was compiled for."""
    drive(backend, tmp_path, machine.build(tool, tmp_path / "unikernel", SOURCES), machine)
