# SPDX-License-Identifier: MIT
"""What all sessions of a backend share."""

import dataclasses

from pcisplit.back.log import PeerLog
from pcisplit.back.supervisor.keepers import Keepers
from pcisplit.back.supervisor.processes import Zygote
from pcisplit.back.supervisor.uids import WorkerUids


@dataclasses.dataclass(frozen=True, slots=True)
class House:
    """`dma_limit` octets of DMA memory for a session, `spin` seconds for a serve loop."""

    zygote: Zygote
    keepers: Keepers
    uids: WorkerUids
    log: PeerLog
    dma_limit: int
    spin: float
    allow_no_reset: bool
