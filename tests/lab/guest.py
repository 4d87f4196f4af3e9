# SPDX-License-Identifier: MIT
"""The runner inside the guest: ``python -m tests.lab.guest GROUP`` runs the checks and reports each as a line of JSON.

Each check runs in a process of its own, forked from this one. So a crash in the C core, or a check that hangs with
the interpreter's lock held, costs one check and not the boot; and descriptors and processes that a failing check leaves
behind are gone before the next, which would find the VFIO group busy otherwise.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from .check import Check, Result, SkipCheck, load_group, port

_PR_SET_CHILD_SUBREAPER = 36


def main(name: str) -> None:
    """Runs a group, writing to the results channel: ``ready``, one line for each check, ``end``."""
    # Whatever a check starts becomes a child of this process when its parent dies, so that _sweep finds it.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with port("results").open("w", buffering=1) as results:
        ready = {"kernel": os.uname().release, "boot": time.clock_gettime(time.CLOCK_BOOTTIME)}
        print(json.dumps({"ready": ready}), file=results)
        group = load_group(name)
        if group.setup is not None:
            group.setup()
        for check in group.checks:
            # The console tells which check was running when the whole guest went down.
            print(f"{check.__name__} ...", flush=True)
            result = _run(check, group.check_timeout)
            print(f"{check.__name__} {result.outcome}", flush=True)
            print(json.dumps(asdict(result)), file=results)
        print(json.dumps({"end": True}), file=results)


def _run(check: Check, timeout: float) -> Result:
    output, report = os.memfd_create("output"), os.memfd_create("report")
    start = time.monotonic()
    if (child := os.fork()) == 0:
        _perform(check, timeout, output, report)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start
    _sweep()
    if reported := _content(report):
        outcome, error = json.loads(reported)
    elif seconds >= timeout:
        outcome, error = "failed", f"{check.__name__} did not end within {timeout:g} s; its output ends with its stacks"
    else:
        code = os.waitstatus_to_exitcode(status)
        end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended by exit({code})"
        outcome, error = "failed", f"{check.__name__} was {end} before it returned"
    return Result(check.__name__, outcome, round(seconds, 3), _content(output), error)


def _perform(check: Check, timeout: float, output: int, report: int) -> NoReturn:
    """The life of a check's process. It reports nothing if it dies early; faulthandler then has printed the stacks."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    # An alarm's Python handler would never run while C code spins; this one is a thread without the interpreter's lock.
    faulthandler.dump_traceback_later(timeout, exit=True)
    ending = ("passed", "")
    own = os.getpid()
    try:
        check()
    except SkipCheck as reason:
        ending = ("skipped", str(reason))
    except BaseException:
        ending = ("failed", traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    if os.getpid() == own:  # and not a child that the check forked, which must not speak for it
        os.write(report, json.dumps(ending).encode())
    os._exit(0)


def _sweep() -> None:
    """Kills what a check left running, and waits until it is gone."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while left := [int(pid) for pid in children.read_text().split()]:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for pid in left:
            os.waitpid(pid, 0)


def _content(memfd: int) -> str:
    content = os.pread(memfd, os.fstat(memfd).st_size, 0)
    os.close(memfd)
    return content.decode(errors="replace")


if __name__ == "__main__":
    main(sys.argv[1])
