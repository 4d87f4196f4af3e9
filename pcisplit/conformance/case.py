# SPDX-License-Identifier: MIT
"""What a case is, and the register of all cases.

A case is a function of a :class:`~pcisplit.conformance.target.Target`. It returns when the backend behaved, and raises
:class:`Violation` when it did not. Its docstring says what it proves, its decorator for which clauses and on what kind
of device::

    @case("RING-7", "RING-8", needs="any")
    def case_nop_is_answered(target: Target) -> None:
        \"""A nop comes back once, with its id.\"""
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pcisplit.conformance.target import Target

#: Seconds within which a living backend does what was asked of it.
DEADLINE = 5.0


class Violation(Exception):
    """The backend did not do what a clause says."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected: {expected}; came: {came}")


class NotRun(Exception):
    """The target cannot show this; the text says what it lacks."""


def fail(expected: str, came: str) -> NoReturn:
    """Raise :class:`Violation`."""
    raise Violation(expected, came)


def expect(holds: bool, expected: str, came: str) -> None:
    """Raise :class:`Violation` unless `holds`."""
    if not holds:
        raise Violation(expected, came)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One behaviour of a backend, and how to see it.

    `needs` names the traits a device must have (:mod:`~pcisplit.conformance.target` lists them), `devices` is how many
    devices the target must serve.
    """

    name: str
    clauses: tuple[str, ...]
    needs: frozenset[str]
    devices: int
    proves: str
    run: Callable[["Target"], None]

    @property
    def chapter(self) -> str:
        return self.run.__module__.rpartition(".cases_")[2]


#: Every case, in the order in which the chapters were imported.
CASES: dict[str, Case] = {}


def case(*clauses: str, needs: str = "any", devices: int = 1) -> Callable[[Callable[["Target"], None]], Case]:
    """Register a function as a case. `needs` is one or more traits, separated by spaces."""

    def register(run: Callable[["Target"], None]) -> Case:
        name = run.__name__.removeprefix("case_")
        assert name not in CASES, f"two cases named {name}"
        proves = " ".join((run.__doc__ or "").split())
        CASES[name] = Case(name, clauses, frozenset(needs.split()), devices, proves, run)
        return CASES[name]

    return register


_INSIDE = "happens inside the backend; nothing of it crosses to the peer"
_BROKEN_DEVICE = "needs a device that misbehaves on command, which a peer cannot make it do"

#: Clauses of role back or both that no peer can see over the socket, and why.
NOT_OBSERVABLE = {
    "BAR-44": "how the backend shares its time between accesses is not on the wire",
    "THR-5": "logs and terminals of the backend are not on the wire",
    "THR-6": "a process's dumpable flag is not on the wire",
    "THR-7": "logs of the backend are not on the wire",
    "THR-9": _BROKEN_DEVICE,
    "THR-10": "a region whose size is sealed cannot be cut, and a hole in it harms only on a machine without memory",
    "THR-12": "how the backend shares its CPUs is not on the wire",
    "THR-11": "what a lock that a peer holds keeps waiting is inside the backend",
    **dict.fromkeys(
        ("THR-13", "THR-14", "THR-15", "THR-16", "THR-17"), "which processes a backend is made of " + _INSIDE
    ),
    "THR-18": "needs a failure inside the backend that a peer cannot cause",
    "THR-19": "a process that sleeps in the kernel " + _INSIDE,
    "ORD-2": "needs a device that is parked for a time the peer can choose",
    "ORD-15": "allows, and demands nothing",
    "LIFE-9": "the processes of the backend are not on the wire",
    "LIFE-10": "the order of the teardown " + _INSIDE,
    "LIFE-11": "the moment of unmapping " + _INSIDE,
    "LIFE-12": "needs a device whose reset fails",
    "LIFE-14": "the IOMMU context of a session " + _INSIDE,
    "LIFE-26": "a method of reset leaves no mark that says which it was",
    "CFG-5": "no counter by rule is on the wire",
    "CFG-12": _BROKEN_DEVICE,
    "DMA-4": "the IOMMU group of a device is not on the wire",
    "DMA-9": "the host's addresses are not on the wire",
    "VER-3": "speaks of later versions",
}
