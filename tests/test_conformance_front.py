# SPDX-License-Identifier: MIT
"""The kit for fronts against our two: Python's, and a C program over pcifront as a unikernel links it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pcisplit.cli import main
from pcisplit.conformance.front import CASES, FrontCase, run_front_case
from pcisplit.conformance.runner import Outcome
from pcisplit.front import include_dirs

ROOT = Path(__file__).resolve().parent.parent
#: The freestanding files of pcifront.
PCIFRONT = [ROOT / "pcisplit/front" / f"pcifront{part}.c" for part in ("", "_attach", "_device", "_pack", "_wait")]
PYTHON = [sys.executable, "-m", "pcisplit.conformance.front.python"]


@pytest.fixture(scope="session")
def c_front(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The program, built."""
    program = tmp_path_factory.mktemp("front") / "front_under_test"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", *(f"-I{folder}" for folder in include_dirs())]
    sources = [ROOT / "tests/c/front_under_test.c", *PCIFRONT]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(program)], check=True)
    return [str(program)]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=pytest.mark.clause(*case.clauses)) for case in CASES.values()]
)
def test_c_front(c_front: list[str], case: FrontCase) -> None:
    result = run_front_case(c_front, case)
    assert result.outcome is Outcome.PASSED, f"{case.proves}\n{result.message}"


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES.values()])
def test_python_front(case: FrontCase) -> None:
    result = run_front_case(PYTHON, case)
    assert result.outcome is Outcome.PASSED, f"{case.proves}\n{result.message}"


@pytest.mark.parametrize("command", [["true"], ["cat"], ["/nonexistent"], ["sleep", "60"]], ids=lambda words: words[0])
def test_what_is_no_front_fails(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcisplit.conformance.front.process.DEADLINE", 0.3)
    assert run_front_case(command, CASES["refusal"]).outcome is Outcome.FAILED


def test_command_line(tmp_path: Path) -> None:
    junit, html = tmp_path / "junit.xml", tmp_path / "report.html"
    words = ["conformance", "front", "--clause", "ERR-1", "--json", "--junit", str(junit), "--html", str(html), "--"]
    done = CliRunner().invoke(main, [*words, *PYTHON])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["clauses"]["ERR-1"] == "passed"
    assert junit.read_text().count("<testcase ") == 2
    assert "ERR-1" in html.read_text()
