# SPDX-License-Identifier: MIT
"""Front gone: the safe order, step by step [LIFE-10]. A step that fails is recorded and does not stop the next.

The order is what keeps the host's memory safe: a device may still be mastering the bus when its front dies, so the bus master
goes off and the device is reset before a single page is unmapped, and pages are never used again.

Of hardware the keeper does it, when the worker is dead: one that lives could set MASTER again. Of models their worker does,
since they die with it.
"""

import enum
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from pcisplit.back.devices.device import Function
from pcisplit.back.devices.quiet import interrupts_off, master_off, wait_transactions


class Step(NamedTuple):
    """What happened at one step: `device` is its spec, or empty for a step of the session; `problem` empty if it went well."""

    name: str
    device: str
    result: str
    problem: str

    def __str__(self) -> str:
        return f"{f'{self.name} {self.device}'.strip()}: {self.problem or self.result or 'done'}"


class Teardown:
    """Runs steps, records them, never raises."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, name: str, action: Callable[[], object], device: str = "") -> bool:
        """Do `action`; its result becomes text. Returns whether it went well."""
        try:
            result, problem = action(), ""
        except Exception as failure:  # whatever it is, the next step must be done
            result, problem = None, str(failure) or type(failure).__name__
        text = result.name.lower() if isinstance(result, enum.Enum) else "" if result is None else str(result)
        self.steps.append(Step(name, device, text, problem))
        return not problem

    @property
    def problems(self) -> list[Step]:
        return [step for step in self.steps if step.problem]

    def quiesce(self, functions: Sequence[Function]) -> dict[int, str]:
        """Steps 3 to 6, for all functions. Returns why a function was not reset, by its place."""
        for function in functions:
            self.step("master off", partial(master_off, function), function.spec)
        for function in functions:
            self.step("transactions", partial(wait_transactions, function), function.spec)
        for function in functions:
            self.step("interrupts off", partial(interrupts_off, function), function.spec)
        unreset = {}
        for place, function in enumerate(functions):
            if not self.step("reset", function.reset, function.spec):
                unreset[place] = self.steps[-1].problem
        return unreset
