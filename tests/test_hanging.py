# SPDX-License-Identifier: MIT
"""A test that hangs is failed by its name, and the next one runs: with this repository's settings, in a run of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HANGING = """
import os, subprocess

def test_waits_in_python():
    here, _ = os.pipe()
    os.read(here, 1)

def test_waits_for_a_process():
    subprocess.run(["sleep", "1000"])

def test_is_next():
    pass
"""


def test_a_test_that_hangs_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    command += ["--timeout", "1", str(tmp_path)]  # nothing but the limit differs, which is minutes there
    wide = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=wide)
    assert done.returncode == 1, done.stdout + done.stderr
    for name in ("test_waits_in_python", "test_waits_for_a_process"):
        assert f"::{name} - Failed: Timeout" in done.stdout
    assert "2 failed, 1 passed" in done.stdout
