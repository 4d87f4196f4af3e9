# SPDX-License-Identifier: MIT
"""Front gone: the safe order, as a table [LIFE-10]. A step that fails is recorded and does not stop the next.

The order is what keeps the host's memory safe: a device may still be mastering the bus when its front dies, so the bus master
goes off and the device is reset before a single page is unmapped, and pages are never used again.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """What happened at one step: `device` is its spec, or empty for a step of the session; `problem` empty if it went well."""

    name: str
    device: str
    result: str
    problem: str


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
