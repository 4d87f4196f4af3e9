# SPDX-License-Identifier: MIT
"""``pcisplit conformance``: prove a back over its socket, or a front that is told what to do by lines."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pcisplit.conformance.runner import Result


@click.group()
def conformance() -> None:
    """Prove that a peer keeps the specification, clause by clause."""


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both commands have."""
    for option in (
        click.option("--html", "as_html", metavar="FILE", type=click.Path(path_type=Path), help="Write an HTML page."),
        click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write JUnit XML."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object."),
        click.option("--clause", metavar="ID", help="Only cases of this clause, as in RING-7."),
        click.option(
            "--case", "pattern", default="*", show_default=True, help="Only cases whose name matches this pattern."
        ),
    ):
        command = option(command)
    return command


@conformance.command()
@click.option("--socket", "path", required=True, help="The socket of the backend under test.")
@click.option(
    "--wait", default=10.0, show_default=True, metavar="SECONDS", help="For the socket to be there and listen."
)
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Use this device; repeat. Default: all.")
@reports
def back(path: str, wait: float, devices: tuple[str, ...], pattern: str, clause: str | None, **how: Any) -> None:
    """Prove that the backend behind a socket keeps the specification.

    The backend must serve at least one device that nobody uses; some cases need a register model: edu (1234:11e8) or
    plain memory (1af4:10ff). Exits 1 if a case failed, also when there is no first session: the report says so.
    """
    import pcisplit.conformance  # noqa: F401  (registers the cases)
    from pcisplit.conformance.peer import Refused, Violation
    from pcisplit.conformance.runner import chosen, run_case, without_session
    from pcisplit.conformance.target import Target

    cases = chosen(pattern, clause)
    if not cases:
        raise click.ClickException(f"no case matches {clause or repr(pattern)}")
    try:
        target = Target(path, list(devices), wait=wait)
    except (Violation, Refused, OSError) as problem:
        _tell(without_session(problem, cases), **how)
        return
    results = []
    with _progress(len(cases)) as step:
        for case in cases:
            step(case.name)
            results.append(run_case(target, case))
    _tell(results, **how)


@conformance.command()
@click.argument("command", nargs=-1, required=True)
@reports
def front(command: tuple[str, ...], pattern: str, clause: str | None, **how: Any) -> None:
    """Prove that a frontend keeps the specification: COMMAND starts a program that speaks the lines of spec/conformance.md.

    Exits 1 if a case failed.
    """
    import fnmatch

    from pcisplit.conformance.front import CASES, run_front_case

    cases = [case for case in CASES.values() if fnmatch.fnmatchcase(case.name, pattern)]
    cases = [case for case in cases if clause is None or clause in case.clauses]
    if not cases:
        raise click.ClickException(f"no case matches {clause or repr(pattern)}")
    results = []
    with _progress(len(cases)) as step:
        for case in cases:
            step(case.name)
            results.append(run_front_case(command, case))
    _tell(results, **how)


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's standard error, and nothing elsewhere. What it yields is called before each case."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=count, completed=-1)

        def step(name: str) -> None:
            progress.update(task, advance=1, description=name)

        yield step


def _tell(results: "list[Result]", as_json: bool, junit: Path | None, as_html: Path | None) -> None:
    """The reports that were asked for; exits 1 if a case failed."""
    from pcisplit.conformance.report import report_html, report_json, report_junit, report_text, verdict
    from pcisplit.conformance.runner import Outcome

    if junit:
        junit.write_text(report_junit(results))
    if as_html:
        as_html.write_text(report_html(results))
    click.echo(report_json(results) if as_json else report_text(results), nl=as_json)
    sys.exit(verdict(results) is Outcome.FAILED)
