# SPDX-License-Identifier: MIT
"""Front gone: the safe order, as a table [LIFE-10]. A step that fails is recorded and does not stop the next.

The order is what keeps the host's memory safe: a device may still be mastering the bus when its front dies, so the bus master
goes off and the device is reset before a single page is unmapped, and pages are never used again.
"""

import enum
import time
from collections.abc import Callable
from typing import NamedTuple

from pcisplit import pci
from pcisplit.back.devices.device import Device
from pcisplit.errors import DeviceError
from pcisplit.wire import Error

TRANSACTIONS_SECONDS = 1.0


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


def master_off(device: Device) -> None:
    """MASTER off and INTX_DISABLE on."""
    command = device.config_read(pci.COMMAND, 2)
    device.config_write(pci.COMMAND, 2, (command & ~pci.COMMAND_MASTER) | pci.COMMAND_INTX_DISABLE)


def wait_transactions(device: Device) -> str:
    """Wait until Transactions Pending is clear, at most 1 second. The device is a liar: this is a courtesy, not a proof."""
    config = device.config_read(pci.STATUS, 2)
    if not config & pci.STATUS_CAP_LIST:
        return "no PCI Express capability"
    raw = b"".join(device.config_read(at, 4).to_bytes(4, "little") for at in range(0, pci.CONFIG_SIZE, 4))
    express = pci.find_capability(raw, pci.CAP_PCIE)
    if express is None or express + pci.PCIE_DEVSTA + 2 > pci.CONFIG_SIZE:
        return "no PCI Express capability"
    deadline = time.monotonic() + TRANSACTIONS_SECONDS
    while device.config_read(express + pci.PCIE_DEVSTA, 2) & pci.PCIE_DEVSTA_TRANSACTIONS_PENDING:
        if time.monotonic() > deadline:
            raise DeviceError(Error.TIMEOUT, "transactions are still pending after 1 s")
    return "none pending"
