# SPDX-License-Identifier: MIT
"""A front takes shared memory away while the back looks at it: its session ends, the process does not [THR-9]."""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pcisplit.back.core.native import guarded_read, guarded_write, prefault
from pcisplit.ring.region import create_region
from pcisplit.wire import Error

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.clause("THR-9", "THR-10", "THR-3")
@pytest.mark.parametrize("moment", ["asleep", "spinning", "stopped", "owner reads a block"])
def test_a_cut_f2b_ends_only_the_session(moment: str) -> None:
    command = [sys.executable, "-m", "tests.attacks.taken_away", moment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"ended with {done.returncode}, a SIGBUS is -7: {done.stderr}"
    word, report = done.stdout.splitlines()[-1].split(" ", 1)  # after the log
    assert word == "survived"
    found = json.loads(report)
    assert found["problems"] == []
    if moment == "stopped":
        assert found["reason"] in ("SUCCESS", "FAULTED")
    else:
        assert found["reason"] == "FAULTED"
    expected = [Error.SUCCESS] * 2
    if moment == "owner reads a block":
        expected += [Error.SUCCESS, Error.FAULTED, Error.SUCCESS]
    assert found["errors"] == expected


@pytest.mark.clause("THR-9")
def test_copies_of_shared_memory_fail_where_it_is_gone() -> None:
    fd = create_region("cut", 8192)
    memory = mmap.mmap(fd, 8192)
    assert prefault(memory)
    assert guarded_write(memory, 4090, b"across")
    assert guarded_read(memory, 4090, 6) == b"across"
    with pytest.raises(ValueError, match="octets at"):
        guarded_read(memory, 8190, 3)
    os.ftruncate(fd, 4096)
    assert not prefault(memory)
    assert guarded_read(memory, 4090, 6) == b"across"
    assert guarded_read(memory, 4090, 7) is None
    assert not guarded_write(memory, 4096, b"x")
    assert not guarded_write(memory, 8191, b"x")
    memory.close()
    os.close(fd)


@pytest.mark.clause("THR-9")
def test_guards_nest(tool: Callable[[str], str], tmp_path: Path) -> None:
    ring, program = ROOT / "pcisplit" / "ring", tmp_path / "guard_test"
    sources = [ROOT / "tests" / "c" / "guard_test.c", ring / "guard.c"]
    flags = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-D_GNU_SOURCE", f"-I{ring}", "-pthread"]
    subprocess.run([tool("gcc"), *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
