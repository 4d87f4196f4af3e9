# SPDX-License-Identifier: MIT
"""Row 11: a polite session beside sessions that flood, against the same beside as many processes that only use a CPU.

A session that floods with mapped reads is two processes that never sleep, front and worker; one that floods with trapped blocks
is one, its front sleeps. It is compared with as many.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

from backend import Backend, on_cpus
from children import forked, running
from peers import CFront, Timing, Tools
from report import Result

SIZES = (1, 4, 15)  #: with the polite one they are 16, all that a uid may have
PAIRS = 3  #: of measurements: beside spinning processes, beside flooding sessions
SECONDS = 0.5  #: of one measurement
SETTLE = 0.05  #: seconds from letting them run to measuring
TARGET = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A row: what the polite session reads (in rows.c), and with what the others flood."""

    row: str
    reads: str
    which: int
    floods: str
    blocks: bool


def kinds(mapped: int, owner: int) -> list[Kind]:
    """The four rows. `mapped` and `owner`: rows of rows.c."""
    return [
        Kind("11a", "mapped read", mapped, "trapped blocks", True),
        Kind("11b", "owner read", owner, "trapped blocks", True),
        Kind("11c", "mapped read", mapped, "mapped reads", False),
        Kind("11d", "owner read", owner, "mapped reads", False),
    ]


def measure(tools: Tools, cpus: Sequence[int], scale: float, chosen: Sequence[Kind]) -> list[Result]:
    """The rows of `chosen`, one line for each number of flooding sessions. Everybody is on `cpus`. Raises BenchError."""
    found: list[Result] = []
    seconds = max(SECONDS * scale, 0.05)
    for blocks in (True, False):
        rows = [kind for kind in chosen if kind.blocks is blocks]
        if not rows:
            continue
        with on_cpus(cpus), contextlib.ExitStack() as held:
            backend = held.enter_context(Backend(devices=max(SIZES) + 1, cpus=cpus))
            busy = 1 if blocks else 2  # processes of a flooding session
            spinning = held.enter_context(forked([lambda: tools.burn] * max(SIZES) * busy))
            flooding = held.enter_context(forked([_flood(tools, backend, n + 1, blocks) for n in range(max(SIZES))]))
            polite = held.enter_context(CFront(tools, backend.path))
            for size in SIZES:
                pairs = []
                for _ in range(PAIRS):
                    backend.wait_asleep()
                    alone = _beside(spinning[: size * busy], polite, rows, seconds)
                    pairs.append((alone, _beside(flooding[:size], polite, rows, seconds)))
                found += [
                    _result(kind, size, [(a[index], f[index]) for a, f in pairs]) for index, kind in enumerate(rows)
                ]
    return sorted(found, key=lambda result: result.row)


def _flood(tools: Tools, backend: Backend, device: int, blocks: bool) -> Callable[[], Callable[[], None]]:
    def prepare() -> Callable[[], None]:
        front = CFront(tools, backend.path, f"ram{device}")
        return lambda: front.flood(blocks)

    return prepare


def _beside(pids: Sequence[int], polite: CFront, rows: Sequence[Kind], seconds: float) -> list[Timing]:
    with running(pids):
        time.sleep(SETTLE)
        return [polite.run_for(kind.which, seconds) for kind in rows]


def _result(kind: Kind, size: int, pairs: Sequence[tuple[Timing, Timing]]) -> Result:
    medians = [flooded.op for _, flooded in pairs]
    return Result(
        row=kind.row,
        name=f"{kind.reads} beside {size} x {kind.floods}",
        floor="A",
        target=TARGET,
        median=statistics.median(medians),
        least=min(medians),
        most=max(medians),
        p50=statistics.median(medians),
        p99=statistics.median(flooded.p99 for _, flooded in pairs),
        before=statistics.median(alone.op for alone, _ in pairs),
        after=statistics.median(alone.op for alone, _ in pairs),
        floor_p99=statistics.median(alone.p99 for alone, _ in pairs),
        ratio=statistics.median(flooded.op / alone.op for alone, flooded in pairs),
    )
