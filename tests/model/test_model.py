# SPDX-License-Identifier: MIT
"""Checks the Promela model of the ring's publish/sleep protocol with spin, over every interleaving and store delay."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CLAUSES = ("RING-2", "RING-4", "RING-10", "RING-11", "RING-15", "RING-16", "RING-17")

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[1] / "pcisplit" / "ring" / "pcisplit_ring.h"

DEADLOCK = "invalid end state"
WRONG_MESSAGE = "assertion violated (slot==count)"
OVERRUN = "assertion violated (( ((((mem[0]-mem[1])&15)>=8))"
NO_SEQUENCE = "assertion violated ((ahead<=0)||found)"
CYCLE = "non-progress cycle"

# Each broken variant of ring.pml, and the error that spin must find in it.
VARIANTS = {
    "BROKEN_ORDER": WRONG_MESSAGE,
    "BROKEN_EARLY": NO_SEQUENCE,
    "BROKEN_ANNOUNCE": DEADLOCK,
    "BROKEN_OWES": DEADLOCK,
    "BROKEN_LEAVES": DEADLOCK,
    "BROKEN_KICK": DEADLOCK,
    "BROKEN_SLEEP": DEADLOCK,
    "BROKEN_RECHECK": DEADLOCK,
    "BROKEN_DISTANCE": OVERRUN,
    "BROKEN_FREE": WRONG_MESSAGE,
    "BROKEN_HOLDS": DEADLOCK,
    "BROKEN_FULL": DEADLOCK,
    "BROKEN_FULL_SLEEP": DEADLOCK,
    "BROKEN_FULL_RECHECK": DEADLOCK,
    "BROKEN_SPIN": CYCLE,
}

clause = pytest.mark.clause(*CLAUSES)
system = pytest.mark.system


def run(cwd: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


def search(cwd: Path, model: str, *macros: str, cycles: bool = False, optimise: str = "-O0") -> str:
    """Pan's report on a model: a search for bad states, or for cycles. -O0 suits a short search: gcc takes longest."""
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install {tool}")
    for source in HERE.glob("*.pml"):
        shutil.copy(source, cwd)
    run(cwd, "spin", *(f"-D{macro}" for macro in macros), "-a", model)
    kind = "-DNP" if cycles else "-DSAFETY"
    run(cwd, "gcc", optimise, kind, "-DNOCLAIM", "-o", "pan", "pan.c")
    return run(cwd, "./pan", *(["-l"] if cycles else []))


def assert_holds(report: str, trail: Path) -> None:
    assert "errors: 0" in report, report
    assert "Full statespace search for:" in report, report
    assert "Search not completed" not in report, report
    assert "max search depth too small" not in report, report
    assert not trail.exists(), report


def assert_fails(report: str, trail: Path, error: str) -> None:
    assert "errors: 1" in report, report
    found = re.search(r"^pan:1: (.*) \(at depth \d+\)$", report, re.MULTILINE)
    assert found is not None, report
    assert " ".join(found[1].split()).startswith(error), report
    assert trail.exists(), report


def tags(path: Path) -> set[str]:
    return set(re.findall(r"/\*\s*@([a-z_]+)\b", path.read_text(encoding="utf-8")))


@clause
@system
def test_ring_model_holds(tmp_path: Path) -> None:
    report = search(tmp_path, "ring.pml", optimise="-O2")
    assert_holds(report, tmp_path / "ring.pml.trail")
    # Every step is exercised: nothing but the ends of endless loops is unreached.
    unreached = re.findall(r'^\s+\S+\.pml:\d+, state \d+, "(.*)"$', report, re.MULTILINE)
    assert set(unreached) == {"-end-"}, report


@system
def test_recheck_of_the_slot_alone_loses_nothing_on_x86(tmp_path: Path) -> None:
    assert_holds(search(tmp_path, "ring.pml", "SLOT_ALONE", optimise="-O2"), tmp_path / "ring.pml.trail")


@clause
@system
def test_every_run_of_the_ring_model_is_finite(tmp_path: Path) -> None:
    report = search(tmp_path, "ring.pml", cycles=True, optimise="-O2")
    assert_holds(report, tmp_path / "ring.pml.trail")


@clause
@system
@pytest.mark.parametrize("variant", VARIANTS)
def test_broken_variant_is_caught(tmp_path: Path, variant: str) -> None:
    error = VARIANTS[variant]
    report = search(tmp_path, "ring.pml", variant, cycles=error == CYCLE)
    assert_fails(report, tmp_path / "ring.pml.trail", error)


def test_every_broken_variant_is_tested() -> None:
    text = (HERE / "ring.pml").read_text(encoding="utf-8")
    assert set(re.findall(r"^#ifn?def (BROKEN_\w+)$", text, re.MULTILINE)) == set(VARIANTS)


@system
@pytest.mark.parametrize("litmus", ["SB_FENCE", "MP", "OWN"])
def test_machine_forbids(tmp_path: Path, litmus: str) -> None:
    assert_holds(search(tmp_path, "litmus.pml", litmus), tmp_path / "litmus.pml.trail")


@system
@pytest.mark.parametrize("litmus", ["SB", "SB_OWN"])
def test_machine_allows(tmp_path: Path, litmus: str) -> None:
    assert_fails(search(tmp_path, "litmus.pml", litmus), tmp_path / "litmus.pml.trail", "assertion violated !")


@clause
def test_model_has_the_steps_of_the_header() -> None:
    steps = {
        "announce",
        "consume",
        "distance",
        "full_recheck",
        "full_sleep",
        "must_kick",
        "publish",
        "recheck",
        "sleep",
    }
    assert tags(HERE / "ring.pml") == steps
    assert tags(HEADER) == steps
