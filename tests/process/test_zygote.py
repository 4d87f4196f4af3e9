# SPDX-License-Identifier: MIT
"""A zygote that dies takes the workers along; the supervisor puts everything in order, says why, and ends."""

import os
import signal
from collections.abc import Callable

import pytest

from pcisplit.proto.errors import SessionGone
from tests.conftest import DEADLINE, Backend, alive, children


def test_a_zygote_that_dies_ends_the_backend_with_a_sentence(make_backend: Callable[..., Backend]) -> None:
    backend = make_backend("--device", "ram0=model:ram")
    backend.killed = True  # it ends by itself, and not with 0
    session = backend.connect(dma=0)
    (zygote,) = children(backend.process.pid)
    workers = backend.workers(1)
    os.kill(zygote, signal.SIGKILL)
    assert backend.process.wait(DEADLINE) == 1
    said = (backend.folder / "log").read_text()
    assert "the zygote died, so no session can be opened any more; restart the backend" in said
    assert "Traceback" not in said
    with pytest.raises(SessionGone):
        session.acquire("ram0").config.read16(0)
    session.close()
    assert not any(alive(worker) for worker in workers)
    assert not backend.path.exists()
