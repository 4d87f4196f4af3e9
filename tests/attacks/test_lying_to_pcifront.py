# SPDX-License-Identifier: MIT
"""The freestanding frontend against a back that lies, answers oddly or acts between two of its steps (tests/c/front_test.c)."""

import subprocess
from pathlib import Path

import pytest

from tests.machines import FRONT, INCLUDE, ROOT

#: Where each clause is proved: a case of the program, and what it is about.
CASES = [
    pytest.param("full_ring", id="a ring that empties while the front decides what to wait for"),
    pytest.param("full_table", id="a table full of answers that nobody polled"),
    pytest.param("strange_answers", marks=pytest.mark.clause("LIFE-30"), id="answers without end to nobody"),
    pytest.param("relative_deadline", id="a deadline that counts from the first wait"),
    pytest.param("odd_responses", marks=pytest.mark.clause("THR-32"), id="errors and octets out of the table"),
    pytest.param("addresses", marks=pytest.mark.clause("THR-30"), id="an address of the back's choice"),
    pytest.param("announcements", marks=pytest.mark.clause("RING-15"), id="what was put off is told in time"),
    pytest.param("slots_given_back", marks=pytest.mark.clause("RING-17"), id="slots are given back in time"),
    pytest.param("packs", marks=pytest.mark.clause("BAR-40", "BAR-41"), id="posts travel in packs, in order"),
    pytest.param("packed_reads", marks=pytest.mark.clause("BAR-43"), id="fewer values than were asked for"),
    pytest.param("wrong_writer", marks=pytest.mark.clause("THR-31"), id="a region that the wrong side may write"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("front") / "front_test"
    flags = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [ROOT / "tests" / "c" / "front_test.c", *FRONT]
    subprocess.run(["gcc", *flags, *INCLUDE, *map(str, sources), "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("case", CASES)
def test_the_front_keeps_its_deadlines_and_its_memory(program: Path, case: str) -> None:
    done = subprocess.run([program, case], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_program_knows_its_cases(program: Path) -> None:
    assert subprocess.run([program, "no such case"]).returncode == 2
