# SPDX-License-Identifier: MIT
"""Rules that refuse an access: their numbers cross the wire in a refusal, their names are those of spec/config.md.

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


#: What each refuses.
RULES = {
    Rule.IDS: "writes to vendor, device, revision, class and subsystem",
    Rule.COMMAND: "writes of bits of COMMAND other than MEM, IO, MASTER and INTX_DISABLE",
    Rule.STATUS: "ones written to bits of STATUS that are no error bits",
    Rule.CACHE_LINE: "nothing: the field is the back's",
    Rule.LATENCY: "writes to latency timer, header type and BIST",
    Rule.BAR: "nothing: bits that hardware ignores are ignored",
    Rule.ROM: "nothing: there is no ROM",
    Rule.CAP_POINTER: "writes to the capabilities pointer",
    Rule.INTERRUPT: "writes to the interrupt pin",
    Rule.CAPABILITY: "writes to a capability of the list",
    Rule.EXTENDED: "writes from 0x100 on",
    Rule.GAP: "writes to what is nothing of these",
    Rule.MSIX_TABLE: "accesses to the MSI-X table and pending bits in a BAR",
}


def rule_name(number: int) -> str:
    """``cap-pointer (8)``, as the specification spells it; only the number where the name is not ours to know."""
    try:
        return f"{Rule(number).name.lower().replace('_', '-')} ({number})"
    except ValueError:
        return f"{number} of the operator" if number >= OPERATOR else str(number)
