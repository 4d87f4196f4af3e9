# SPDX-License-Identifier: MIT
"""Reports by clause: text, JSON, JUnit XML, HTML."""

import html
import json
import re
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

from pcisplit.conformance.case import NOT_OBSERVABLE
from pcisplit.conformance.runner import Outcome, Result


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
        console.print("\n" + tally(results))
    return capture.get()


def tally(results: list[Result]) -> str:
    """``12 passed, 1 not run, 0 failed``."""
    count = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    return ", ".join(f"{number} {outcome}" for outcome, number in count.items())


def report_junit(results: list[Result]) -> str:
    """The report as JUnit XML: a test per case, its chapter as the class."""
    count = [sum(result.outcome is outcome for result in results) for outcome in (Outcome.FAILED, Outcome.NOT_RUN)]
    suite = ElementTree.Element("testsuite", name="pcisplit conformance", tests=str(len(results)))
    suite.set("failures", str(count[0]))
    suite.set("skipped", str(count[1]))
    for result in results:
        case = ElementTree.SubElement(suite, "testcase", name=result.case.name, classname=result.case.chapter)
        case.set("time", f"{result.seconds:.3f}")
        if result.outcome is not Outcome.PASSED:
            kind = "failure" if result.outcome is Outcome.FAILED else "skipped"
            ElementTree.SubElement(case, kind, message=_printable(result.message)).text = ", ".join(result.case.clauses)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def report_html(results: list[Result]) -> str:
    """The report as one page without links to anywhere."""
    rows = []
    for clause, of in by_clause(results).items():
        outcome = verdict(of)
        cases = "<br>".join(
            f"<b>{html.escape(result.case.name)}</b>: {result.outcome}. {html.escape(result.case.proves)}"
            + (f"<pre>{html.escape(_printable(result.message))}</pre>" if result.message else "")
            for result in of
        )
        rows.append(f"<tr class='{outcome.name.lower()}'><td>{clause}<td>{outcome}<td>{cases}")
    style = (
        "td{vertical-align:top;padding:2px 8px}.passed td+td{color:#060}.failed{background:#fdd}.not_run{color:#777}"
    )
    head = f"<!doctype html><meta charset='utf-8'><title>pcisplit conformance</title><style>{style}</style>"
    return f"{head}<h1>pcisplit conformance</h1><p>{tally(results)}</p><table>{''.join(rows)}</table>\n"


def _printable(text: str) -> str:
    """What XML can hold: a peer's octets may stand in a message."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
