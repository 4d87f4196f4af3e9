# SPDX-License-Identifier: MIT
"""The benchmark runs; its numbers are not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="the benchmark pins two processes to two CPUs; this is one"
)
def test_the_benchmark_reports_every_row() -> None:
    command = [sys.executable, str(ROOT / "bench" / "bench.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"1", "2", "3", "4", "5"} <= {str(row["row"]) for row in report["rows"] if row["row"]}
