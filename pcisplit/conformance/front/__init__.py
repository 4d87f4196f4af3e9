# SPDX-License-Identifier: MIT
"""Proof that a front speaks the protocol: a scripted back, honest and lying, and a front that is told what to do by lines.

>>> from pcisplit.conformance.front import run_front
>>> results = run_front(["./front_under_test"])  # doctest: +SKIP
"""

from pcisplit.conformance.front import (  # noqa: F401  (a case is registered when its file is imported)
    cases_honest,
    cases_lies,
    cases_meeting,
)
from pcisplit.conformance.front.case import CASES, FrontCase
from pcisplit.conformance.front.runner import run_front, run_front_case

__all__ = ["CASES", "FrontCase", "run_front", "run_front_case"]
