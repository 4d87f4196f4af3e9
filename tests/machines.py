# SPDX-License-Identifier: MIT
"""Other machines than this one: programs for them, run by qemu's user mode."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = (f"-I{ROOT}/pcisplit/ring", f"-I{ROOT}/pcisplit/front")
#: The frontend as a unikernel links it.
FRONT = tuple(
    ROOT / "pcisplit" / "front" / f"pcifront{part}.c" for part in ("", "_wait", "_pack", "_attach", "_device")
)
CPU = min(os.sched_getaffinity(0))

Tool = Callable[[str], str]


@dataclass(frozen=True)
class Machine:
    """An architecture, as the compiler and qemu call it, and Debian's libc for it.

    `one_cpu`: qemu makes of a sequentially consistent store and the load after it (stlr, ldar) a plain store and a plain load,
    which an x86 lets overtake: 409 of 300 000 times in a store-buffer litmus test with qemu 7.2, where C11 and arm64 promise
    none. On one CPU nothing overtakes. riscv64's fences stay fences.
    """

    name: str
    libc: str
    one_cpu: bool = False

    def build(self, tool: Tool, target: Path, sources: Sequence[Path]) -> list[str]:
        """A static program of `sources`, and the command that runs it here. Skips without compiler, libc or qemu."""
        compiler, qemu = tool(f"{self.name}-linux-gnu-gcc"), tool(f"qemu-{self.name}")
        static = [compiler, "-static", "-pthread", "-o", str(target)]
        if subprocess.run(
            [*static, "-x", "c", "-"], input=b"int main(void) { return 0; }", capture_output=True
        ).returncode:
            pytest.skip(f"no libc for {self.name}: apt-get install {self.libc}")
        flags = ["-g", "-O2", "-Wall", "-Wextra", "-Werror", *INCLUDE]
        subprocess.run([*static, *flags, *map(str, sources)], check=True)
        return [*(["taskset", "-c", str(CPU)] if self.one_cpu else []), qemu, str(target)]

    def pin(self, pids: Iterable[int]) -> None:
        """Processes that share memory with such a program: to its CPU, if that matters."""
        for pid in pids if self.one_cpu else ():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                for thread in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(thread), {CPU})


MACHINES = (Machine("aarch64", "libc6-dev-arm64-cross", one_cpu=True), Machine("riscv64", "libc6-dev-riscv64-cross"))
