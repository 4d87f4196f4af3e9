# SPDX-License-Identifier: MIT
"""Ring and frontend on other architectures, run by qemu on this machine's CPU, which orders stores more strictly than theirs:
what is shown is that the code is right for their octets, calls and atomics. That it has their barriers is in test_ring_c.py.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.test_lying_to_pcifront import CASES
from tests.machines import FRONT, MACHINES, ROOT, Machine

TESTS = ROOT / "tests" / "c"

pytestmark = [pytest.mark.system, pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)]


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.clause("RING-1", "RING-2", "RING-3", "RING-10", "RING-11", "RING-16")
def test_the_ring(tool: Callable[[str], str], tmp_path: Path, machine: Machine) -> None:
    command = machine.build(tool, tmp_path / "ring_test", [TESTS / "ring_test.c"])
    run(*command, "unit")
    run(*command, "threads", "20000")
    for seed in "1", "2", "4":
        run(*command, "processes", "50000", seed)
        run(*command, "echo", "50000", seed)


def test_the_frontend(tool: Callable[[str], str], tmp_path: Path, machine: Machine) -> None:
    command = machine.build(tool, tmp_path / "front_test", [TESTS / "front_test.c", *FRONT])
    for case in CASES:
        run(*command, str(case.values[0]))
