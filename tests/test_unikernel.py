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
from pcisplit.bootinfo import parse_boot_info_untrusted
from pcisplit.messages import Hello, Need, parse_reply_untrusted
from pcisplit.wire import Direction, Error, RegionIndex
from tests.conftest import Backend

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "pcisplit" / "front" / name for name in ("pcifront.c", "pcifront_attach.c", "pcifront_device.c")]


@pytest.mark.clause("BOOT-2", "BOOT-3", "VER-6")
@pytest.mark.parametrize(
    "sanitize", [(), ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")], ids=["", "asan"]
)
def test_a_unikernel_with_a_tender(
    tool: Callable[[str], str], backend: Backend, tmp_path: Path, sanitize: tuple[str, ...]
) -> None:
    """The tender does the meeting and hands on a block and descriptors; the unikernel knows nothing else."""
    program = tmp_path / "unikernel"
    include = [f"-I{ROOT}/pcisplit/ring", f"-I{ROOT}/pcisplit/front"]
    flags = ["-g", "-O2", "-Wall", "-Wextra", "-Werror", *sanitize, *include]
    command = [tool("gcc"), *flags, *map(str, [ROOT / "tests" / "c" / "unikernel.c", *SOURCES]), "-o", str(program)]
    subprocess.run(command, check=True)
    with backend.raw() as sock, contextlib.ExitStack() as held:
        sock.send(Hello("unikernel", (Need("edu0", 1), Need("ram0")), 1 << 20, 28).to_bytes())
        data, fds, _, _ = socket.recv_fds(sock, 1 << 16, wire.MAX_FDS)
        for fd in fds:
            held.callback(os.close, fd)
        reply = parse_reply_untrusted(data)
        assert reply.error is Error.SUCCESS
        info = parse_boot_info_untrusted(reply.boot_info)
        block = tmp_path / "boot-info"
        block.write_bytes(reply.boot_info)
        regions = [fds[info.region(index).fd] for index in RegionIndex]
        bells = {bell.index: fds[bell.fd] for bell in info.doorbells}
        handed = [*regions, bells[Direction.FRONT_TO_BACK], bells[Direction.BACK_TO_FRONT]]
        done = subprocess.run(
            [program, block, *map(str, handed)], pass_fds=handed, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (0, "SUCCESS\n"), done.stderr
        assert sock.recv(1) == b""  # the back has seen the front close, and torn down
    backend.wait_log("session over")
