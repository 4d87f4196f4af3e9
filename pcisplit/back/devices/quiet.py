# SPDX-License-Identifier: MIT
"""The steps of the safe order that need nothing but the seam [LIFE-10]: for a worker, and for its keeper when it is dead."""

import time

from pcisplit import pci
from pcisplit.back.devices.device import Function
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error, VectorType

TRANSACTIONS_SECONDS = 1.0
_PAUSE_FIRST, _PAUSE_MOST = 0.001, 0.05  # seconds between looks at a device that is not done yet


def master_off(function: Function) -> None:
    """MASTER off and INTX_DISABLE on. DeviceError if the device does not take it."""
    command = function.config_read(pci.COMMAND, 2)
    function.config_write(pci.COMMAND, 2, (command & ~pci.COMMAND_MASTER) | pci.COMMAND_INTX_DISABLE)
    if function.config_read(pci.COMMAND, 2) & pci.COMMAND_MASTER:  # VFIO says that a write it drops went well
        raise DeviceError(Error.OP_FAILED, f"{function.spec}: MASTER is still on")


def wait_transactions(function: Function) -> str:
    """Wait until Transactions Pending is clear, at most 1 second. The device is a liar: this is a courtesy, not a proof."""
    if not function.config_read(pci.STATUS, 2) & pci.STATUS_CAP_LIST:
        return "no PCI Express capability"
    config = b"".join(function.config_read(at, 4).to_bytes(4, "little") for at in range(0, pci.CONFIG_SIZE, 4))
    express = pci.find_capability(config, pci.CAP_PCIE)
    if express is None or express + pci.PCIE_DEVSTA + 2 > pci.CONFIG_SIZE:
        return "no PCI Express capability"
    deadline, pause = time.monotonic() + TRANSACTIONS_SECONDS, _PAUSE_FIRST
    while function.config_read(express + pci.PCIE_DEVSTA, 2) & pci.PCIE_DEVSTA_TRANSACTIONS_PENDING:
        if time.monotonic() > deadline:
            raise DeviceError(Error.TIMEOUT, f"{function.spec}: transactions are still pending after 1 s")
        time.sleep(pause)  # hardware gives no event to wait for
        pause = min(2 * pause, _PAUSE_MOST)
    return "none pending"


def interrupts_off(function: Function) -> None:
    """Every kind off, whoever put it on: an exploited worker may have enabled what this process knows nothing of."""
    failure: DeviceError | None = None
    for kind in VectorType:
        try:
            function.irq_set(kind, 0, ())
        except DeviceError as problem:
            failure = problem
    if failure:
        raise failure
