# SPDX-License-Identifier: MIT
"""Run cases against a socket, and report by clause."""

import dataclasses
import enum
import fnmatch
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import click

from pcisplit.conformance.case import CASES, NOT_OBSERVABLE, Case, NotRun, Violation
from pcisplit.conformance.peer import Refused
from pcisplit.conformance.target import Target


class Outcome(enum.StrEnum):
    """What came of a case, best first."""

    PASSED = "passed"
    NOT_RUN = "not run"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What came of one case, in how many seconds; `message` says what was expected and what came."""

    case: Case
    outcome: Outcome
    seconds: float
    message: str = ""
    device: str = ""


def run_case(target: Target, case: Case) -> Result:
    """Run one case; then a fresh session must still work, whatever the case has done to its own."""
    begin = time.monotonic()

    def result(outcome: Outcome, message: str = "") -> Result:
        return Result(case, outcome, time.monotonic() - begin, message, target.device.name)

    try:
        target.fit(case)
        case.run(target)
    except NotRun as reason:
        return result(Outcome.NOT_RUN, str(reason))
    except Exception as problem:
        return result(Outcome.FAILED, _told(problem))
    try:
        target.check_alive()
    except Exception as problem:
        return result(Outcome.FAILED, f"after the case no fresh session works: {_told(problem)}")
    return result(Outcome.PASSED)


def _told(problem: Exception) -> str:
    return str(problem) if isinstance(problem, Violation) else f"{type(problem).__name__}: {problem}"


def run_all(
    target: Target, pattern: str = "*", progress: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Run every case whose name matches the shell pattern; `progress` is called with each result."""
    results = []
    for case in CASES.values():
        if fnmatch.fnmatchcase(case.name, pattern):
            results.append(run_case(target, case))
            progress(results[-1])
    return results


def by_clause(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results that speak for each clause, in the order of chapters and numbers."""
    found: dict[str, list[Result]] = {}
    for result in results:
        for clause in result.case.clauses:
            found.setdefault(clause, []).append(result)
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _place(clause: str) -> tuple[str, int]:
    chapter, number = re.fullmatch(r"([A-Z]+)-(\d+)", clause).groups()  # type: ignore[union-attr]
    return chapter, int(number)


def verdict(results: Iterable[Result]) -> Outcome:
    """Failed if one failed, passed if one passed, else not run."""
    outcomes = {result.outcome for result in results}
    return next((o for o in (Outcome.FAILED, Outcome.PASSED) if o in outcomes), Outcome.NOT_RUN)


def report_json(results: list[Result]) -> str:
    """The whole report as a JSON object."""
    report: dict[str, Any] = {
        "clauses": {clause: verdict(of) for clause, of in by_clause(results).items()},
        "not_observable": NOT_OBSERVABLE,
        "cases": [
            {
                "case": result.case.name,
                "chapter": result.case.chapter,
                "clauses": result.case.clauses,
                "proves": result.case.proves,
                "device": result.device,
                "outcome": result.outcome,
                "seconds": round(result.seconds, 3),
                "message": result.message,
            }
            for result in results
        ],
    }
    return json.dumps(report, indent=2)


def report_text(results: list[Result], width: int | None = None) -> str:
    """The report as a table with a line per clause, then a line per case that did not pass."""
    from rich.console import Console
    from rich.table import Table

    colours = {Outcome.PASSED: "green", Outcome.NOT_RUN: "yellow", Outcome.FAILED: "bold red"}
    table = Table("clause", "outcome", "cases", box=None, pad_edge=False)
    for clause, of in by_clause(results).items():
        outcome = verdict(of)
        table.add_row(clause, f"[{colours[outcome]}]{outcome}[/]", ", ".join(result.case.name for result in of))
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
        for result in results:
            if result.outcome is not Outcome.PASSED:
                console.print(f"\n[{colours[result.outcome]}]{result.outcome}[/] {result.case.name} ({result.device})")
                console.print(result.message, markup=False, highlight=False)
        count = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
        console.print("\n" + ", ".join(f"{number} {outcome}" for outcome, number in count.items()))
    return capture.get()


@click.command()
@click.option("--socket", "path", required=True, help="The socket of the backend under test.")
@click.option(
    "--wait", default=10.0, show_default=True, metavar="SECONDS", help="For the socket to be there and listen."
)
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Use this device; repeat. Default: all.")
@click.option("--case", "pattern", default="*", show_default=True, help="Only cases whose name matches this pattern.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def main(path: str, wait: float, devices: tuple[str, ...], pattern: str, as_json: bool) -> None:
    """Prove that the backend behind a socket keeps the specification, clause by clause.

    The backend must serve at least one device that nobody uses; some cases need a register model: edu (1234:11e8) or
    plain memory (1af4:10ff). Exits 1 if a case failed.
    """
    import pcisplit.conformance  # noqa: F401  (registers the cases)

    try:
        target = Target(path, list(devices), wait=wait)
    except (Violation, Refused, OSError) as problem:
        raise click.ClickException(f"no first session at {path}: {_told(problem)}") from None

    def progress(result: Result) -> None:
        if sys.stderr.isatty():
            click.echo(f"{result.outcome:8} {result.seconds:6.2f} s  {result.case.name}", err=True)

    results = run_all(target, pattern, progress)
    if not results:
        raise click.ClickException(f"no case matches {pattern!r}; there are {', '.join(CASES)}")
    click.echo(report_json(results) if as_json else report_text(results), nl=as_json)
    sys.exit(verdict(results) is Outcome.FAILED)
