# SPDX-License-Identifier: MIT
"""What the backend's processes do to themselves."""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4  #: linux/prctl.h


def harden() -> None:
    """Before a device is opened: make this process undumpable: no ptrace, no core, no /proc/PID/fd for others of its uid [THR-6].

    Also take all the descriptors that the hard limit allows. Raises OSError; also where workers could not be jailed.
    """
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        text = "libseccomp.so.2 is not there, and a worker is not let near a front without it"
        raise OSError(f"{text}; as root: apt-get install libseccomp2") from None
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # fronts use up descriptors by connecting
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill us when `parent` ends; again after a change of uid, which makes the kernel forget it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
