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
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {str(row["row"]) for row in report["rows"] if row["row"]}
    assert {"1", "2", "3", "4", "5", "8", "9", "11a", "11b", "11c", "11d", "12", "13"} <= rows


@pytest.mark.slow
def test_rows_can_be_chosen() -> None:
    command = [sys.executable, str(ROOT / "bench" / "bench.py"), "--quick", "--json", "--rows", "9,12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["row"] for row in rows if row["row"]] == ["9", "12"]
    assert next(row for row in rows if row["row"] == "9")["median"] == 0, "an idle serve thread was woken"
