# SPDX-License-Identifier: MIT
"""What was measured, and on what."""

import dataclasses
import os
import platform
import re
import subprocess
from pathlib import Path

import pcisplit

PACKAGE = Path(pcisplit.__file__).parent


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """Everything that a reader must know before believing a number."""

    cpu: str
    cpus: int  #: that we may run on
    kernel: str
    hypervisor: bool
    emulated: bool
    load: float  #: of one minute, when we began
    build: str
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        under = ", emulated" if self.emulated else ", under a hypervisor" if self.hypervisor else ", no hypervisor"
        return f"{self.cpu}, {self.cpus} CPUs, Linux {self.kernel}{under}, load {self.load:.2f}; {self.build}"


def describe(compiler: str) -> Machine:
    """This machine and this build, before anything is measured."""
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^(?:model name|Model|uarch)\s*:\s*(.+)$", info, re.MULTILINE)
    cpu = name[1].strip() if name else platform.machine()
    hypervisor = bool(re.search(r"^flags\s*:.*\bhypervisor\b", info, re.MULTILINE))
    hypervisor |= Path("/proc/device-tree/hypervisor").exists()
    emulated = "TCG" in cpu
    cpus = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    remarks = []
    if load > cpus / 2:
        remarks.append(f"measured under load: {load:.2f} on {cpus} CPUs; the numbers are those of a busy machine")
    if emulated:
        remarks.append("measured under emulation: no number here is one of hardware")
    if _core_is_old():
        remarks.append("the backend's C core is older than its sources; build it first (make bench does)")
    return Machine(cpu, cpus, platform.release(), hypervisor, emulated, load, _build(compiler), tuple(remarks))


def two_cpus() -> tuple[int, int] | None:
    """Two CPUs for the two sides, of different cores if there are any; None on a machine with one."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return None
    first = cpus[0]
    siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings")
    mask = int(siblings.read_text().replace(",", ""), 16) if siblings.exists() else 1 << first
    return first, next((cpu for cpu in cpus[1:] if not mask >> cpu & 1), cpus[1])


def _build(compiler: str) -> str:
    release = platform.python_implementation() + " " + platform.python_version()
    return f"pcisplit {pcisplit.__version__}{_commit()}, {_first_line(compiler, '--version')}, {release}"


def _commit() -> str:
    commit = _first_line("git", "-C", str(PACKAGE), "rev-parse", "--short", "HEAD")
    if not commit:
        return ""
    changed = _first_line("git", "-C", str(PACKAGE), "status", "--porcelain", "--", ".")
    return f" ({commit}{', changed' if changed else ''})"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _core_is_old() -> bool:
    core = next(PACKAGE.glob("_core*.so"), None)
    sources = [path for pattern in ("*/*.c", "*/*.h") for path in PACKAGE.glob(pattern)]
    return core is not None and core.stat().st_mtime < max(path.stat().st_mtime for path in sources)
