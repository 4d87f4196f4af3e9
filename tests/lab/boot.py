# SPDX-License-Identifier: MIT
"""Boots the lab: QEMU with an emulated Intel IOMMU, in software (TCG) even where KVM exists: all machines agree.

The guest has three channels: the serial console for what its kernel and its programs say, a virtio port ``results``
with a line of JSON for each check, and a virtio port ``qmp`` through which checks talk to QEMU's monitor.

For a look around: ``python -m tests.lab.boot --shell-command 'lspci -nn; dmesg | tail' edu,addr=0x10 nec-usb-xhci``.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .check import Group, Result
from .kernel import ROOT, LabError, prepare, tool

# No timer check and no trust in the TSC: under emulation both are at the mercy of the host's scheduler. After an oops
# no check can be believed, so the kernel panics, which writes its whole log to the console (panic_print) and ends QEMU.
_KERNEL_ARGS = (
    "console=ttyS0 quiet intel_iommu=on panic=-1 oops=panic panic_print=32 tsc=unstable no_timer_check mitigations=off"
)

# The first process of the guest. The cache's modules appear in their usual place, for modprobe and for the kernel.
_SCRIPT = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd {root}
mkdir -p /lib/modules
mount --bind {modules} /lib/modules
modprobe -a vfio-pci vfio_iommu_type1
{command}
exec {busybox} poweroff -f
"""

_CONSOLE_LINES = 80  # shown of the beginning and of the end: a panic comes with its whole log


@dataclass(frozen=True)
class Boot:
    """What became of one boot: the results that came, and why no more came if the guest did not finish."""

    kernel: str
    """The guest's kernel release; empty if the runner never started."""
    ready: float
    """Seconds from the kernel's start to the runner's."""
    seconds: float
    """Seconds from QEMU's start to its end."""
    results: dict[str, Result]
    console: str
    failure: str
    """Empty if the runner came to its end."""

    def result(self, name: str) -> Result:
        """What a check reported; a failure, with the guest's console, if the guest went down before it could."""
        if name in self.results:
            return self.results[name]
        lines = self.console.splitlines()
        if (cut := len(lines) - 2 * _CONSOLE_LINES) > 0:
            lines[_CONSOLE_LINES:-_CONSOLE_LINES] = [f"... ({cut} lines)"]
        error = f"{name} did not report: {self.failure or 'the guest does not know it'}"
        return Result(name, "failed", 0.0, "\n".join(["The guest's console:", *lines]), error)


def boot(group: Group) -> Boot:
    """Runs a group of checks in a fresh guest, and returns when QEMU has ended or the group's timeout has passed.

    A guest that hangs, panics or does not start is no exception but a Boot with a failure. Raises LabError if this
    machine lacks what the lab needs.
    """
    start = time.monotonic()
    with _qemu(group, shlex.join([sys.executable, "-m", "tests.lab.guest", group.name])) as (qemu, console, results):
        said, reported = _pump(console, results, start + group.timeout)
        failure = _failure(qemu, said, group.timeout)
    ready: dict[str, Any] = {"kernel": "", "boot": 0.0}
    outcomes = {}
    # What follows the last newline is a line that the guest was writing when it went down.
    for line in map(json.loads, reported.split("\n")[:-1]):
        if "ready" in line:
            ready = line["ready"]
        elif "end" in line:
            failure = ""
        else:
            outcomes[line["name"]] = Result(**line)
    return Boot(ready["kernel"], ready["boot"], time.monotonic() - start, outcomes, said, failure)


def _failure(qemu: subprocess.Popen[bytes], said: str, timeout: float) -> str:
    """Why the guest's last line did not come, in case that it did not."""
    try:
        status = qemu.wait(1)  # it has closed its channels and is about to end, unless the time is over
    except subprocess.TimeoutExpired:
        return f"the guest did not end within {timeout:g} s and was killed"
    if status < 0:
        return f"QEMU was killed by {signal.Signals(-status).name}"
    if status > 0:
        return f"QEMU ended with status {status}"
    return "its kernel panicked" if "Kernel panic" in said else "the guest's runner ended early"


@contextmanager
def _qemu(group: Group, command: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, socket.socket]]:
    """QEMU, and our ends of its console and of its results channel. QEMU is dead when the context ends."""
    pairs = [socket.socketpair() for _ in range(3)]
    (console, qemu_console), (results, qemu_results), (monitor, guest_monitor) = pairs
    with console, results:
        with qemu_console, qemu_results, monitor, guest_monitor:  # it gets copies of its own
            fds = [end.fileno() for end in (qemu_results, monitor, guest_monitor)]
            qemu = subprocess.Popen(
                _argv(group, command, *fds),
                stdin=subprocess.DEVNULL,
                stdout=qemu_console.fileno(),
                stderr=subprocess.STDOUT,
                pass_fds=fds,
            )
        with qemu:
            try:
                yield qemu, console, results
            finally:
                qemu.kill()


def _argv(group: Group, command: str, results: int, monitor: int, guest_monitor: int) -> list[str]:
    kernel = prepare()
    root, modules, busybox = (shlex.quote(str(path)) for path in (ROOT, kernel.modules, tool("busybox")))
    script = _SCRIPT.format(root=root, modules=modules, busybox=busybox, command=command)
    # A kernel's command line cannot carry quotes and newlines; the initramfs decodes lab=.
    lab = base64.b64encode(script.encode()).decode()
    machine = f"""
        -nodefaults -no-user-config -no-reboot -display none
        -chardev stdio,id=console,signal=off -serial chardev:console
        -accel tcg -machine q35,kernel-irqchip=off -device intel-iommu -cpu max -smp {group.cpus} -m {group.memory}
        -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap
        -device virtio-9p-pci,addr=0x1d,fsdev=root,mount_tag=root
        -device virtio-serial-pci,addr=0x1e
        -chardev socket,id=results,fd={results} -device virtserialport,name=results,chardev=results
        -chardev socket,id=monitor,fd={monitor} -mon chardev=monitor,mode=control
        -chardev socket,id=qmp,fd={guest_monitor} -device virtserialport,name=qmp,chardev=qmp
    """
    return [
        # QEMU must not outlive a test run that is killed.
        *(tool("setpriv"), "--pdeathsig", "KILL", tool("qemu-system-x86_64"), *machine.split()),
        *(word for device in group.devices for word in _option(device)),
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)),
        *("-append", f"{_KERNEL_ARGS} {group.kernel_args} lab={lab}"),
    ]


def _option(device: str) -> Sequence[str]:
    return shlex.split(device) if device.startswith("-") else ("-device", device)


def _pump(console: socket.socket, results: socket.socket, deadline: float, echo: bool = False) -> tuple[str, str]:
    """All that comes from the console and from the results channel until QEMU closes both, or until the deadline."""
    said, reported = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(console, selectors.EVENT_READ, said)
        selector.register(results, selectors.EVENT_READ, reported)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                if not data:
                    selector.unregister(key.fileobj)
                elif echo and key.data is said:
                    os.write(sys.stdout.fileno(), data)
    # The serial line ends its lines with \r\n.
    return said.decode(errors="replace").replace("\r", ""), reported.decode(errors="replace")


def main() -> None:
    """Boots a guest with some devices, and shows its console while it runs one shell command."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.boot", description=main.__doc__)
    parser.add_argument("--shell-command", required=True, metavar="COMMAND")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for the whole boot")
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="like edu,addr=0x10, or a whole '-object ...'")
    options = parser.parse_args()
    try:
        with _qemu(Group("shell", (), tuple(options.devices)), options.shell_command) as (_, console, results):
            _pump(console, results, time.monotonic() + options.timeout, echo=True)
    except LabError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
