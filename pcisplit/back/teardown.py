# SPDX-License-Identifier: MIT
"""Front gone: the safe order, as a table [LIFE-10]. A step that fails is recorded and does not stop the next.

The order is what keeps the host's memory safe: a device may still be mastering the bus when its front dies, so the bus master
goes off and the device is reset before a single page is unmapped, and pages are never used again.

Of hardware the keeper does it, when the worker is dead: one that lives could set MASTER again. Of models their worker does,
since they die with it.
"""

import enum
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pcisplit import pci
from pcisplit.back.devices.device import Function
from pcisplit.errors import DeviceError
from pcisplit.wire import Error, VectorType

TRANSACTIONS_SECONDS = 1.0


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

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self.steps: list[Step] = list(steps)

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

    def quiesce(self, functions: Sequence[Function]) -> dict[str, str]:
        """Steps 3 to 6, for all functions. Returns why a function was not reset, by its spec."""
        for function in functions:
            self.step("master off", lambda function=function: master_off(function), function.spec)
        for function in functions:
            self.step("transactions", lambda function=function: wait_transactions(function), function.spec)
        for function in functions:
            self.step("interrupts off", lambda function=function: interrupts_off(function), function.spec)
        unreset = {}
        for function in functions:
            if not self.step("reset", function.reset, function.spec):
                unreset[function.spec] = self.steps[-1].problem
        return unreset


def master_off(function: Function) -> None:
    """MASTER off and INTX_DISABLE on."""
    command = function.config_read(pci.COMMAND, 2)
    function.config_write(pci.COMMAND, 2, (command & ~pci.COMMAND_MASTER) | pci.COMMAND_INTX_DISABLE)


def interrupts_off(function: Function) -> None:
    """Every kind of interrupt that the function has."""
    for kind in VectorType:
        if getattr(function.interrupts, kind.name.lower()):
            function.irq_set(kind, 0, ())


def wait_transactions(function: Function) -> str:
    """Wait until Transactions Pending is clear, at most 1 second. The device is a liar: this is a courtesy, not a proof."""
    if not function.config_read(pci.STATUS, 2) & pci.STATUS_CAP_LIST:
        return "no PCI Express capability"
    raw = b"".join(function.config_read(at, 4).to_bytes(4, "little") for at in range(0, pci.CONFIG_SIZE, 4))
    express = pci.find_capability(raw, pci.CAP_PCIE)
    if express is None or express + pci.PCIE_DEVSTA + 2 > pci.CONFIG_SIZE:
        return "no PCI Express capability"
    deadline, pause = time.monotonic() + TRANSACTIONS_SECONDS, 0.0005
    while function.config_read(express + pci.PCIE_DEVSTA, 2) & pci.PCIE_DEVSTA_TRANSACTIONS_PENDING:
        if time.monotonic() > deadline:
            raise DeviceError(Error.TIMEOUT, f"transactions are still pending after {TRANSACTIONS_SECONDS:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return "none pending"
