# SPDX-License-Identifier: MIT
"""Violations put into copies of our peers, one at a time: the kit catches each that can be seen from outside (tests/seeds)."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from pcisplit.conformance.front import CASES, run_front_case
from pcisplit.conformance.runner import Outcome
from tests.seeds import Seed, read

ROOT = Path(__file__).resolve().parent.parent
FRONTS = read("fronts")
PARTS = ("", "_attach", "_device", "_pack", "_wait")


def plant(seed: Seed, root: Path) -> None:
    """Put the seed into the copy at `root`."""
    old, new = (text.replace("\\|", "|").replace("\\n", "\n") for text in (seed.old, seed.new))
    path = root / seed.file
    text = path.read_text()
    assert text.count(old) == 1, f"{seed.file} has {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new))


def build(root: Path) -> list[str]:
    """The C front under test of the tree at `root`."""
    program = root / "front_under_test"
    sources = [root / "tests/c/front_under_test.c", *(root / f"pcisplit/front/pcifront{part}.c" for part in PARTS)]
    flags = ["-std=c11", "-O1", "-w", f"-I{root / 'pcisplit/front'}", f"-I{root / 'pcisplit/ring'}"]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(program)], check=True)
    return [str(program)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", FRONTS, ids=lambda seed: f"{seed.clause}-{seed.case}")
def test_seed_of_a_front(seed: Seed) -> None:
    if seed.case == "-":
        pytest.skip(f"cannot be seen from outside: {seed.clause}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("pcisplit/front", "pcisplit/ring", "tests/c"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        plant(seed, root)
        assert seed.clause in CASES[seed.case].clauses or seed.clause.startswith("THR"), "a case of another clause"
        result = run_front_case(build(root), CASES[seed.case])
    assert result.outcome is Outcome.FAILED, f"{seed} is not seen: {CASES[seed.case].proves}"


def test_there_are_enough_seeds() -> None:
    assert sum(seed.case != "-" for seed in FRONTS) >= 20
