# SPDX-License-Identifier: MIT
"""PCI facts: addresses, registers of the type 0 header, capabilities."""

from pcisplit.pci.bdf import *  # noqa: F403
from pcisplit.pci.capabilities import *  # noqa: F403
from pcisplit.pci.header import *  # noqa: F403
