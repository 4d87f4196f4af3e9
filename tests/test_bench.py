# SPDX-License-Identifier: MIT
"""The benchmark runs; its numbers are not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="the benchmark pins two processes to two CPUs; this is one"
)


@pytest.mark.slow
@two_cpus
def test_the_benchmark_reports_every_row() -> None:
    command = [sys.executable, str(ROOT / "bench" / "bench.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {str(row["row"]) for row in report["rows"] if row["row"]}
    assert {"1", "2", "3", "4", "5", "5b", "8", "9", "10", "11a", "11b", "11c", "11d", "12", "13"} <= rows
    for row in report["rows"]:
        if row["row"] in {"1", "2", "3", "4", "5", "5b", "10"}:
            assert row["goal"] < row["target"] or row["rule"], row
            assert row["bound"] > 0, row
            assert row["regime"] in {"same core", "between cores", "far"}, row
            judged = row["verdict"].startswith(("met", "missed"))
            assert judged is (row["regime"] == "between cores"), row
    names = {str(floor["name"]) for floor in report["floors"]}
    assert {"P", "E", "S", "slot", "slots", "packed", "many", "batch"} == names


@pytest.mark.slow
@two_cpus
def test_a_target_that_hangs_on_a_row_not_measured_judges_nothing() -> None:
    command = [sys.executable, str(ROOT / "bench" / "bench.py"), "--quick", "--json", "--rows", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["target"] is None
    assert row["rule"] == "row 1 + 200 ns"
    assert row["verdict"] in {"", "unsteady"}


@pytest.mark.slow
def test_rows_can_be_chosen() -> None:
    command = [sys.executable, str(ROOT / "bench" / "bench.py"), "--quick", "--json", "--rows", "9,12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["row"] for row in rows if row["row"]] == ["9", "12"]
    assert next(row for row in rows if row["row"] == "9")["median"] == 0, "an idle serve thread was woken"
