# SPDX-License-Identifier: MIT
"""Fronts that are killed while their device is mastering the bus: nothing of them is left, and the device is given again."""

from __future__ import annotations

from .check import bind_vfio, clause, find_device
from .serving import Serving, kill_many

DEVICES = ["pcie-root-port,id=rp1,chassis=1,slot=1,addr=0x10", "edu,bus=rp1"]

TIMES = 20

_backends: list[Serving] = []


def setup() -> None:
    """One backend."""
    (edu,) = find_device(0x1234, 0x11E8)
    bind_vfio(edu)
    _backends.append(Serving([f"edu={edu}"]).ready())


@clause("LIFE-4", "LIFE-10", "LIFE-13", "DMA-1")
def check_killed_in_the_middle_of_dma() -> None:
    """SIGKILL in a transfer, 20 times: afterwards no descriptor, mapping or thread more; the next session has it all."""
    kill_many(_backends[0], "edu", TIMES)


def check_backend_ends_well() -> None:
    """SIGTERM ends it with 0."""
    _backends[0].stop()
