# SPDX-License-Identifier: MIT
"""Proof that a backend speaks the protocol: a raw peer, given only the specification, and what it expects.

``pcisplit conformance back --socket PATH`` runs every case against whatever listens there, in whatever language it was
written, and reports clause by clause; ``pcisplit conformance front -- COMMAND`` does that to a front (``front/``). The kit
shares numbers and the atomic words with pcisplit, and no layout and no code of either side.

>>> from pcisplit.conformance import CASES, Target, run_case
>>> result = run_case(Target("/run/pcisplit/demo", ["edu0"]), CASES["nop"])  # doctest: +SKIP
"""

from pcisplit.conformance import (  # noqa: F401  (a case is registered when its chapter is imported)
    cases_bar,
    cases_boot,
    cases_config,
    cases_dma,
    cases_errors,
    cases_hello,
    cases_hostile,
    cases_interrupts,
    cases_lifecycle,
    cases_meeting,
    cases_packs,
    cases_ring,
)
from pcisplit.conformance.case import CASES, NOT_OBSERVABLE, Case, NotRun, Violation, case
from pcisplit.conformance.peer import Peer, Refused
from pcisplit.conformance.report import report_html, report_json, report_junit, report_text
from pcisplit.conformance.runner import Outcome, Result, run_all, run_case
from pcisplit.conformance.target import Target

__all__ = [
    "CASES",
    "NOT_OBSERVABLE",
    "Case",
    "NotRun",
    "Outcome",
    "Peer",
    "Refused",
    "Result",
    "Target",
    "Violation",
    "case",
    "report_html",
    "report_json",
    "report_junit",
    "report_text",
    "run_all",
    "run_case",
]
