# SPDX-License-Identifier: MIT
"""The freestanding frontend against a back that lies, answers oddly or acts between two of its steps (tests/c/front_test.c)."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FRONT = ROOT / "pcisplit" / "front"
SOURCES = [FRONT / name for name in ("pcifront.c", "pcifront_attach.c", "pcifront_device.c")]
#: Where each clause is proved: a case of the program, and what it is about.
CASES = [
    pytest.param("full_ring", id="a ring that empties while the front decides what to wait for"),
    pytest.param("full_table", id="a table full of answers that nobody polled"),
    pytest.param("strange_answers", marks=pytest.mark.clause("LIFE-30"), id="answers without end to nobody"),
    pytest.param("relative_deadline", id="a deadline that counts from the first wait"),
    pytest.param("odd_responses", marks=pytest.mark.clause("THR-32"), id="errors and octets out of the table"),
    pytest.param("addresses", marks=pytest.mark.clause("THR-30"), id="an address of the back's choice"),
    pytest.param("wrong_writer", marks=pytest.mark.clause("THR-31"), id="a region that the wrong side may write"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("front") / "front_test"
    flags = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = [f"-I{ROOT}/pcisplit/ring", f"-I{FRONT}"]
    sources = [ROOT / "tests" / "c" / "front_test.c", *SOURCES]
    subprocess.run(["gcc", *flags, *include, *map(str, sources), "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("case", CASES)
def test_the_front_keeps_its_deadlines_and_its_memory(program: Path, case: str) -> None:
    done = subprocess.run([program, case], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_program_knows_its_cases(program: Path) -> None:
    assert subprocess.run([program, "no such case"]).returncode == 2
