# SPDX-License-Identifier: MIT
"""Fronts that are killed in the middle of a DMA transfer of model:edu. The lab does the same with VFIO (checks_death).

The fronts are forked from a process of its own, this module run as a program, which has no threads but one that waits.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.serving import Serving, kill_many

TIMES = 200
SECONDS = 120.0

# `serve`, but dumpable: what an undumpable process holds is root's to see [THR-6], and this test is for everybody.
_SERVE = (
    sys.executable,
    "-c",
    "import pcisplit.back.host.harden, pcisplit.cli\n"
    "pcisplit.back.host.harden.harden = lambda: None\n"
    "pcisplit.cli.main(prog_name='pcisplit')\n",
)


@pytest.mark.slow
@pytest.mark.clause("LIFE-4", "LIFE-10", "LIFE-13", "DMA-1")
def test_killed_200_times_in_the_middle_of_dma(tmp_path: Path) -> None:
    """No descriptor, mapping or thread is left of any of them, and every next session has the device, reset."""
    command = [sys.executable, "-m", "tests.test_death", str(tmp_path), str(TIMES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def main(folder: str, times: int) -> None:
    backend = Serving(["edu0=model:edu,dma_ms=5000"], "--dma", "1M", folder=Path(folder), command=_SERVE)
    try:
        kill_many(backend.ready(), "edu0", times)
    finally:
        backend.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
