# SPDX-License-Identifier: MIT
"""What a group of checks is made of, and what checks use inside the guest.

A group is a module ``checks_NAME.py`` with a docstring. It declares ``DEVICES``, and defines functions ``check_*`` that
take nothing and raise what they find wrong. Its other declarations are the optional ones of Group, in capitals.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Check = Callable[[], None]
AnyCheck = TypeVar("AnyCheck", bound=Check)
Value = TypeVar("Value")

PCI = Path("/sys/bus/pci")


class SkipCheck(Exception):
    """Raised by a check that cannot run here; its message is the reason."""


def clause(*ids: str) -> Callable[[AnyCheck], AnyCheck]:
    """Names the specification clauses that a check proves; pytest sees them as the marker ``clause``."""

    def name(check: AnyCheck) -> AnyCheck:
        vars(check)["clauses"] = ids
        return check

    return name


def clauses(check: Check) -> tuple[str, ...]:
    """The clauses that the decorator ``clause`` gave to a check; none without it."""
    ids: tuple[str, ...] = vars(check).get("clauses", ())
    return ids


@dataclass(frozen=True)
class Result:
    """How one check ended: what it printed and, unless it passed, why it did not. One line of the results channel."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    output: str
    error: str


@dataclass(frozen=True)
class Group:
    """The checks that share a boot, and the machine that they want."""

    name: str
    checks: tuple[Check, ...]
    """In the order of the source, which is the order of the run. Each runs in a process of its own."""
    devices: tuple[str, ...]
    """QEMU options; one without a leading dash, like ``edu,addr=0x10``, is a -device. Slots 0x1d-0x1f are taken."""
    cpus: int = 2
    memory: str = "768M"
    timeout: float = 180.0
    """Seconds for the whole boot."""
    check_timeout: float = 60.0
    """Seconds for one check."""
    kernel_args: str = ""
    """More kernel parameters, like ``hugepages=16``."""
    setup: Check | None = None
    """The module's ``setup()``: runs once, before the checks are forked from the process in which it ran."""


def load_group(name: str) -> Group:
    """Imports ``checks_NAME.py``. TypeError says what is wrong with its declarations."""
    module = importlib.import_module(f"{__package__}.checks_{name}")
    checks = tuple(
        value
        for key, value in vars(module).items()
        if key.startswith("check_") and isinstance(value, types.FunctionType) and value.__module__ == module.__name__
    )
    if not (module.__doc__ and checks and isinstance(getattr(module, "DEVICES", None), list)):
        raise TypeError(f"{module.__file__} needs a docstring, a list DEVICES and a function check_*")
    options: dict[str, Any] = {
        option: getattr(module, option.upper())
        for option in ("cpus", "memory", "timeout", "check_timeout", "kernel_args")
        if hasattr(module, option.upper())
    }
    return Group(name, checks, tuple(module.DEVICES), setup=getattr(module, "setup", None), **options)


def group_names() -> list[str]:
    """The groups beside this module, in alphabetical order."""
    return sorted(path.stem.removeprefix("checks_") for path in Path(__file__).parent.glob("checks_*.py"))


# Everything below is for checks, inside the guest.


def ids(bdf: str) -> tuple[int, int]:
    """The vendor and the device identity of a PCI function, named like ``0000:00:10.0``."""
    vendor, device = (int((PCI / "devices" / bdf / name).read_text(), 16) for name in ("vendor", "device"))
    return vendor, device


def find_device(vendor: int, device: int) -> list[str]:
    """The addresses of all PCI functions with this identity, in order."""
    return sorted(path.name for path in (PCI / "devices").iterdir() if ids(path.name) == (vendor, device))


def iommu_group(bdf: str) -> int:
    """The number of a function's IOMMU group, the N of /dev/vfio/N."""
    return int((PCI / "devices" / bdf / "iommu_group").readlink().name)


def bind_vfio(bdf: str) -> None:
    """Gives a function to vfio-pci, whatever driver has it, unless vfio-pci has it already. OSError with the reason."""
    function = PCI / "devices" / bdf
    driver = function / "driver"
    (function / "driver_override").write_text("vfio-pci")
    if driver.exists() and driver.readlink().name != "vfio-pci":
        (driver / "unbind").write_text(bdf)
    if not driver.exists():
        before = dmesg_end()
        (PCI / "drivers_probe").write_text(bdf)
        if not driver.exists():
            said = "\n".join(dmesg(before)) or "nothing"
            raise OSError(errno.ENODEV, f"vfio-pci did not take it, and dmesg says {said}", bdf)


def dmesg_end() -> int:
    """Where the kernel's log ends now: what ``dmesg`` takes as ``since``."""
    return max((sequence for sequence, _ in _kmsg()), default=-1) + 1


def dmesg(since: int = 0) -> list[str]:
    """The lines of the kernel's log, without their times, from a place that ``dmesg_end`` gave."""
    return [text for sequence, text in _kmsg() if sequence >= since]


def _kmsg() -> Iterator[tuple[int, str]]:
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with suppress(BlockingIOError):  # the end of the log
            while True:
                # One read gives one record: "priority,sequence,time,flags;text", then lines that tell of the device.
                head, _, text = os.read(log, 8192).decode(errors="replace").partition(";")
                yield int(head.split(",")[1]), text.splitlines()[0]
    finally:
        os.close(log)


def wait_until(predicate: Callable[[], Value], timeout: float, what: str = "") -> Value:
    """Waits at most ``timeout`` seconds for a true value and returns it; AssertionError names what did not come."""
    deadline = time.monotonic() + timeout
    tick = threading.Event()
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what or predicate}")
        tick.wait(0.01)
    return value


def port(name: str) -> Path:
    """The device node of the virtio serial port that QEMU knows under this name. FileNotFoundError."""
    for label in Path("/sys/class/virtio-ports").glob("*/name"):
        if label.read_text().strip() == name:
            return Path("/dev", label.parent.name)
    raise FileNotFoundError(errno.ENOENT, "no virtio serial port of this name", name)


def qmp(command: str, **arguments: object) -> Any:
    """Has QEMU execute a command of its monitor, and returns what it answered. RuntimeError if it refused.

    ``qmp("device_del", id="e1")``, ``qmp("human-monitor-command", **{"command-line": "info pci"})``.
    """
    tag = time.monotonic_ns()
    requests = ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments, "id": tag})
    with port("qmp").open("r+b", buffering=0) as monitor:
        monitor.write(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
        # The capabilities are refused from the second time on, which is as well; events and the greeting have no id.
        reply = next(reply for reply in map(json.loads, monitor) if reply.get("id") == tag)
    if "error" in reply:
        raise RuntimeError(f"QEMU refused {command}: {reply['error']['desc']}")
    return reply["return"]
