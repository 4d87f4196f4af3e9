# SPDX-License-Identifier: MIT
"""What the backend process does to itself before it opens a device."""

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4  #: linux/prctl.h


def harden() -> None:
    """Make this process undumpable: no ptrace, no core, no /proc/PID/fd for others of its uid [THR-6].

    Also take all the descriptors that the hard limit allows. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # fronts use up descriptors by connecting
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
