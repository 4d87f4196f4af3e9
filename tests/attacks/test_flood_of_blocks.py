# SPDX-License-Identifier: MIT
"""One uid floods all its sessions with blocks of single octets at trapped areas, the dearest thing there is (A2)."""

import threading
from collections.abc import Callable

import pytest

from pcisplit.back.supervisor.registry import SESSIONS_PER_UID
from pcisplit.front import Session
from tests.conftest import Backend

DEADLINE = 60.0
FLOODS = SESSIONS_PER_UID - 1


class Flood:
    """A session that always has blocks to be read."""

    def __init__(self, session: Session) -> None:
        self._session, self._stop, self.done = session, threading.Event(), 0
        self._device = session.acquire(next(iter(session.devices)))
        self._device.config.write16(0x04, 0x02)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        bar = self._device.bar(0)
        while not self._stop.is_set():
            bar.read_block(0x40000, 4096, width=1)
            self.done += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self._session.close()


@pytest.mark.slow
@pytest.mark.clause("THR-3", "MEET-23")
def test_a_polite_session_beside_fifteen_floods(make_backend: Callable[..., Backend]) -> None:
    """It is opened, reads 300 times and is closed, three times over, while every flood goes on."""
    names = [f"edu{n}" for n in range(FLOODS + 1)]
    devices = [word for name in names for word in ("--device", f"{name}=model:edu")]
    backend = make_backend(*devices, "--dma", "1M")
    floods: list[Flood] = []
    try:
        for name in names[:FLOODS]:
            floods.append(Flood(backend.connect(devices=[name], timeout=DEADLINE)))
        before = [flood.done for flood in floods]
        for _ in range(3):
            with backend.connect(devices=[names[-1]], timeout=10.0, wait=DEADLINE) as session:
                device = session.acquire(names[-1])
                device.config.write16(0x04, 0x02)
                assert all(device.bar(0).read32(0) & 0xFF == 0xED for _ in range(300))
        assert all(flood.done > then for flood, then in zip(floods, before, strict=True))
    finally:
        for flood in floods:
            flood.stop()
