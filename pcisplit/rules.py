# SPDX-License-Identifier: MIT
"""Rules of configuration space: their numbers cross the wire in a refusal, their names are those of spec/config.md. Sans-IO.

Numbers below OPERATOR are the specification's; the others are an operator's own and have no name here.
"""

import enum

OPERATOR = 0x1000


class Rule(enum.IntEnum):
    """Rules of this version; the id is told to the front when one refuses it [CFG-3]."""

    IDS = 1
    COMMAND = 2
    STATUS = 3
    CACHE_LINE = 4
    LATENCY = 5
    BAR = 6
    ROM = 7
    CAP_POINTER = 8
    INTERRUPT = 9
    CAPABILITY = 10
    EXTENDED = 11
    GAP = 12
    MSIX_TABLE = 13


def rule_name(number: int) -> str:
    """``cap-pointer (8)``, as the specification spells it; only the number where the name is not ours to know."""
    try:
        return f"{Rule(number).name.lower().replace('_', '-')} ({number})"
    except ValueError:
        return f"{number} of the operator" if number >= OPERATOR else str(number)
