# SPDX-License-Identifier: MIT
"""What a run found: the table for people, the object for programs."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction

from machine import Machine
from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 144  #: of the table, where no terminal says


SAME, BETWEEN, FAR = "same core", "between cores", "far"


def regime(p: float) -> str:
    """How the two CPUs lie to each other, as the exchange of a cache line tells, in ns."""
    return SAME if p < 80 else BETWEEN if p <= 200 else FAR


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A measured row, or one that was skipped and why.

    `median`, `least`, `most`, `p50` and `p99` are in `unit`. With a `floor`, `ratio` is to the mean of it before and after, and
    is what `target` judges; without one it is the median. `rule` says where a target comes from that is not the row's own.
    `bound`: what the same slots cost with no protocol, in ns; 0: not measured.
    """

    row: str
    name: str
    floor: str = ""
    target: float | None = None
    goal: float | None = None
    rule: str = ""
    bound: float = 0.0
    unit: str = "ns"
    median: float = 0.0
    least: float = 0.0
    most: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    before: float = 0.0
    after: float = 0.0
    floor_p99: float = 0.0  #: where it is told
    ratio: float = 0.0
    attempts: int = 1
    steady: bool = True
    skipped: str = ""

    @property
    def floor_mean(self) -> float:
        return (self.before + self.after) / 2

    @property
    def regime(self) -> str:
        """Of the row's P; nothing for a row with another floor, or none."""
        return regime(self.floor_mean) if self.floor == "P" and not self.skipped else ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``skipped``; ``unsteady`` if the floor moved. Nothing for a row without a target.

        Targets in P are made for CPUs that are neither one core nor far apart; elsewhere the regime is told instead.
        """
        if self.skipped:
            return "skipped"
        if self.target is None:
            return "" if self.steady else "unsteady"
        if self.regime not in ("", BETWEEN):
            return self.regime if self.steady else f"{self.regime}, unsteady"
        met = "met" if self.ratio <= self.target else "missed"
        return met if self.steady else f"{met}, unsteady"


@dataclasses.dataclass(frozen=True, slots=True)
class Floor:
    """A floor and every time it was measured, in ns."""

    name: str
    what: str
    ns: Sequence[float]


def as_json(machine: Machine, floors: Sequence[Floor], results: Sequence[Result]) -> str:
    """One object; floors in ns."""
    whole: Mapping[str, object] = {
        "machine": dataclasses.asdict(machine),
        "floors": [dataclasses.asdict(floor) for floor in floors],
        "rows": [
            {**dataclasses.asdict(result), "regime": result.regime, "verdict": result.verdict} for result in results
        ],
    }
    return json.dumps(whole, indent=2)


def show(machine: Machine, floors: Sequence[Floor], results: Sequence[Result], quick: bool) -> None:
    """Print a run. The first line says the machine and the build."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print(str(machine), soft_wrap=True)
    for remark in (*machine.remarks, *(["quick: few operations, not for quoting"] if quick else [])):
        console.print(f"[yellow]{remark}[/]", soft_wrap=True)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("row", "what", "target", "goal", "ratio", "bound", "median", "least-most", "p99", "floor", "verdict"):
        left = title in ("row", "what", "verdict")
        table.add_column(title, justify="left" if left else "right", no_wrap=title not in ("what", "verdict"))
    for result in results:
        table.add_row(*_cells(result))
    console.print(table)
    for floor in floors:
        spread = f"{_ns(min(floor.ns))} to {_ns(max(floor.ns))}"
        median = statistics.median(floor.ns)
        told = f"; {regime(median)}" if floor.name == "P" else ""
        console.print(f"{floor.name} = {_ns(median)} ns ({spread}): {floor.what}{told}", soft_wrap=True)
    if any(result.floor == "A" for result in results):
        console.print(
            "A: the same session beside as many processes that only use a CPU; its median and p99", soft_wrap=True
        )
    repeated = [
        f"{result.row or result.name.strip()} ({result.attempts} times)" for result in results if result.attempts > 1
    ]
    if repeated:
        console.print(f"the floor moved, so measured again: {', '.join(repeated)}", soft_wrap=True)


def _cells(result: Result) -> tuple[str, ...]:
    verdict = _colored(result.verdict)
    if result.skipped:
        return (result.row, f"{result.name}: {result.skipped}", *[""] * 8, verdict)
    unit = result.unit
    own = (_amount(result.median, unit), f"{_amount(result.least, unit)}-{_amount(result.most, unit)}")
    if not result.floor:
        median = f"{own[0]} {unit}".rstrip()
        target = f"≤ {result.target:g} {unit}".rstrip() if result.target is not None else ""
        if result.least == result.most:  # measured once
            return (result.row, result.name, target, "", "", "", median, "", "", "", verdict)
        return (result.row, result.name, target, "", "", "", median, own[1], _amount(result.p99, unit), "", verdict)
    floor = _amount(result.floor_mean, unit)
    return (
        result.row,
        result.name,
        _target(result),
        f"{_times(result.goal)} {result.floor}" if result.goal else "",
        f"{result.ratio:.2f} {result.floor}",
        f"{result.bound / result.floor_mean:.2f} {result.floor}" if result.bound else "",
        *own,
        _amount(result.p99, unit),
        f"{floor}, {_amount(result.floor_p99, unit)}" if result.floor_p99 else floor,
        verdict,
    )


def _target(result: Result) -> str:
    if result.rule:
        return f"≤ {result.rule}"
    return f"≤ {_times(result.target)} {result.floor}" if result.target else ""


def _times(target: float) -> str:
    """2, 1.3, 1/6."""
    part = Fraction(target).limit_denominator(20)
    return f"{target:g}" if target >= 1 or part.numerator != 1 or part.denominator == 1 else str(part)


def _amount(value: float, unit: str) -> str:
    return _ns(value) if unit == "ns" else f"{value:.3g}"


def _ns(ns: float) -> str:
    """62.1, 754, 12400; from 0.1 ms on with a unit: 122µs, 5.6ms."""
    if ns < 99999.5:
        return f"{ns:.1f}" if ns < 99.95 else f"{ns:.0f}"
    return f"{ns / 1e3:.0f}µs" if ns < 999.5e3 else f"{ns / 1e6:.3g}ms"


def _colored(verdict: str) -> str:
    color = "yellow" if "unsteady" in verdict else {"met": "green", "missed": "red"}.get(verdict, "")
    return f"[{color}]{verdict}[/]" if color else verdict
