# SPDX-License-Identifier: MIT
"""Which uid a worker runs as. One of its own for each that lives, where the operator gives a range.

Two workers of one uid are no strangers to the kernel: each could signal the other (F_SETSIG), and RLIMIT_NPROC counts them
together. With one uid for all, or with none, the system call filter alone stands between them.
"""

from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error


class WorkerUids:
    """`each` of a range for one live worker; or `user` for all of them; or neither: they stay who we are."""

    def __init__(self, each: range | None = None, user: int | None = None) -> None:
        self._user = user
        self._free = list(each) if each is not None else None

    @property
    def kind(self) -> str:
        """For the log of ``serve``."""
        if self._free is not None:
            return f"{len(self._free)} uids, one per live worker"
        return (
            f"uid {self._user} for all workers" if self._user is not None else "none of their own: give --worker-uids"
        )

    def take(self) -> int | None:
        """The uid of a new worker. Raises DeviceError (QUOTA) when every one is in use."""
        if self._free is None:
            return self._user
        if not self._free:
            raise DeviceError(Error.QUOTA, "every uid of --worker-uids has a live worker; give a longer range")
        return self._free.pop(0)

    def give(self, uid: int | None) -> None:
        """A worker of that uid is dead."""
        if self._free is not None and uid is not None:
            self._free.append(uid)
